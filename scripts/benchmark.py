"""Time a cache graph beside the uncached sampler and, on request, the published scheme; `l2c benchmark`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("benchmark")
