"""Errors, costs, latencies and pictures of sampling with a cache graph."""
