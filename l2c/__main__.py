"""`python -m l2c COMMAND`, the same as `l2c COMMAND`."""

from l2c.commands.frame.start import main

if __name__ == "__main__":
    main()
