"""Timing: latency, speed reports, scale."""
