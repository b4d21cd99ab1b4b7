"""Frozen noise-prediction networks with one seam for caching."""
