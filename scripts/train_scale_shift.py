"""Train the slopes, scales and shifts of what a cache graph reuses; `l2c correct`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("correct")
