"""Draw many images for figures such as FID, on one process or many; run again to continue after a kill."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("sample-many")
