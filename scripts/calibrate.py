"""Measure what the calibrated policies need, once per model and sampler; `l2c calibrate`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("calibrate")
