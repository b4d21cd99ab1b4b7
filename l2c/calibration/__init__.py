"""What is measured on a model, and what its layers cost."""
