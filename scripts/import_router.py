"""Turn another project's router or schedule into a cache graph, or a cache graph into its schedule."""

from l2c.commands.import_router import main

if __name__ == "__main__":
    main()
