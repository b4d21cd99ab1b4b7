"""Figures of papers: FID, sFID, IS, precision, recall."""
