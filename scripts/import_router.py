"""Turn another project's router or schedule into a cache graph, or a cache graph into its schedule; `l2c import`."""

from l2c.commands.frame.start import script

if __name__ == "__main__":
    script("import")
