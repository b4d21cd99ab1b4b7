"""The commands of `l2c`: parse, build, call. Hydra lives here alone."""
