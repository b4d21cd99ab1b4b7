"""Judge a cache graph: error, cost and time against the uncached sampler and baselines of about equal MACs."""

from l2c.commands.evaluate import main

if __name__ == "__main__":
    main()
