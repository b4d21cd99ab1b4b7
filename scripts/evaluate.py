"""Judge a cache graph: error, cost and time against the uncached sampler and baselines; `l2c evaluate`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("evaluate")
