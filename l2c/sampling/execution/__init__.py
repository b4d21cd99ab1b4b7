"""How trajectories run: eager, compiled, captured, in which precision."""
