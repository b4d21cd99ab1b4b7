"""Measure what the calibrated policies need, once per model and sampler."""

from l2c.commands.calibrate import main

if __name__ == "__main__":
    main()
