"""Compare all methods at all budgets over seeds: one table, curves, pictures, one HTML report; resumable."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("compare")
