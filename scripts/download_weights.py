"""Fetch the published weights of a model into checkpoints/; run again to continue a broken download."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("download")
