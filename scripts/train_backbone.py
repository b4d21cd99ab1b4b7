"""Train a small backbone on digits or emoji and write its EMA weights; `l2c train-backbone`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("train-backbone")
