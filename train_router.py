"""Train the routers of a frozen backbone and export them as a cache graph; the same as `l2c train`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("train")
