"""Train a small backbone on scikit-learn's digits or on emoji and write its EMA weights."""

from l2c.commands.train_backbone import main

if __name__ == "__main__":
    main()
