"""Fetch the emoji that the picture testbed is trained on and pack them as one file; `l2c download-emoji`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("download-emoji")
