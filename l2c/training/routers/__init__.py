"""Routers: what they are, what they minimise, one run."""
