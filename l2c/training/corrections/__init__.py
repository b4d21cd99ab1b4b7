"""Training of slopes, scales and shifts of reused layers."""
