"""Train the slopes, scales and shifts of what a cache graph reuses."""

from l2c.commands.train_scale_shift import main

if __name__ == "__main__":
    main()
