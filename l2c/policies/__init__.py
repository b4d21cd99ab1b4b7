"""Ways to a cache graph without gradient descent."""
