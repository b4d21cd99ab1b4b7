"""Print what a cache graph does, and draw it as a heat map.

l2c show runs/demo/cache_graph.json output=graph.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from l2c.commands.frame.table import spelled
from l2c.io.bundled import graph_names


def main(arguments: Sequence[str]) -> None:
    """Load, print, draw."""
    parser = argparse.ArgumentParser(
        prog=spelled("show"), description="Print what a cache graph does, and draw it as a heat map."
    )
    parser.add_argument("graph", help=f"a cache_graph.json, or a bundled graph: {', '.join(graph_names())}")
    parser.add_argument(
        "output", nargs="?", metavar="output=PATH", help="the picture; the default is NAME.png in the current folder"
    )
    given = parser.parse_args(arguments)
    try:
        if given.output is not None and not given.output.startswith("output="):
            raise ValueError(f"unknown argument {given.output!r}; say output=PATH for the picture")
        name = given.graph.removeprefix("graph=")
        from l2c.graph.cache_graph import CacheGraph

        graph = CacheGraph.load(name)
        output = Path(given.output.removeprefix("output=") if given.output else f"{Path(name).stem}.png")
        if output.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"a picture's name must end in .png, .svg or .pdf, got {output}")
        from l2c.report.figures import graph_heatmap, save_figure

        save_figure(graph_heatmap(graph), output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{graph.summary()}\nwrote {output}")
