"""Small models that are trained here: pictures, training of backbones and classifiers; apart from the product."""
