"""Execution of trajectories: eager, compiled, captured, and their precision."""
