"""Sampling with and without a cache graph."""
