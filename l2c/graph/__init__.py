"""The static cache graph: what it says, its file, what it is valid for."""
