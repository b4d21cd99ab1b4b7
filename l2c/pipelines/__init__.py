"""A diffusers pipeline made faster in one call."""
