"""Fetch the published weights of a model into checkpoints/; run again to continue a broken download."""

from l2c.commands.download_weights import main

if __name__ == "__main__":
    main()
