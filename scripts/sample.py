"""Draw images with a backbone, with or without a cache graph."""

from l2c.commands.sample import main

if __name__ == "__main__":
    main()
