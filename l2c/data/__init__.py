"""Training data as Lightning data modules; batches depend on seed and step alone."""
