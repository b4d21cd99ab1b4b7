"""Train the small classifier that reads the digits; `l2c train-classifier`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("train-classifier")
