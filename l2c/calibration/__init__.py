"""Measurements on a model, and the cost of its layers."""
