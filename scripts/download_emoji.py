"""Fetch the emoji pictures that the picture testbed is trained on and pack them as one file."""

from l2c.commands.download_emoji import main

if __name__ == "__main__":
    main()
