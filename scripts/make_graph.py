"""Make a cache graph by a policy, without training."""

from l2c.commands.make_graph import main

if __name__ == "__main__":
    main()
