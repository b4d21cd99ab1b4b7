"""Draw images with a backbone, with or without a cache graph; `l2c sample`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("sample")
