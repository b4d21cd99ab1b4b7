"""Small models that train on a CPU: their data, training and classifiers."""
