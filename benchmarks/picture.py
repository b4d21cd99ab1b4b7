"""Draw one picture of methods at several budgets from a comparison's folder, as the README has it.

python benchmarks/picture.py runs/compare/dit_emoji gram-14 fewer_steps-14 gram-7 fewer_steps-7 --output emoji.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from l2c.report.figures import save_figure
from l2c.report.sample_figure import sample_figure
from l2c.report.samples import SampleRow


def main() -> None:
    """Load the rows, name them by method and budget, draw."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="folder of `l2c compare`")
    options.add_argument("cells", nargs="+", help="METHOD-BUDGET in evaluations' worth, names of files in samples/")
    options.add_argument("--names", nargs="+", help="a name for each cell, in the place of METHOD at BUDGET")
    options.add_argument("--output", type=Path, default=Path("samples.png"))
    given = options.parse_args()
    names = given.names or [" at ".join(cell.rsplit("-", 1)) for cell in given.cells]
    if len(names) != len(given.cells):
        options.error(f"--names must be as many as the cells, {len(given.cells)}, got {len(names)}")
    rows = [
        replace(SampleRow.load(given.folder / "samples" / f"{cell}.safetensors"), name=name)
        for cell, name in zip(given.cells, names, strict=True)
    ]
    save_figure(sample_figure(rows), given.output)
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
