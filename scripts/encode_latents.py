"""Encode a folder of images into latents for router training; run again to continue after a kill."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("encode")
