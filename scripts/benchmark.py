"""Time a cache graph beside the uncached sampler and, on request, the published scheme."""

from l2c.commands.benchmark import main

if __name__ == "__main__":
    main()
