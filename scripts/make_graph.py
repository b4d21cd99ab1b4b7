"""Make a cache graph by a policy, without training; `l2c graph`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("graph")
