"""Train the small classifier that reads the digits, and say how well it reads held-out ones."""

from l2c.commands.train_classifier import main

if __name__ == "__main__":
    main()
