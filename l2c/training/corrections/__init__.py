"""Slopes, scales and shifts of what stands in for reused layers."""
