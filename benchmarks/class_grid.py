"""Draw what `l2c sample` wrote with one row of samples per class, under the names of the emoji's classes.

l2c sample model=dit_emoji num_images=80 hydra.run.dir=runs/classes
python benchmarks/class_grid.py runs/classes/samples.safetensors --output classes.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file

from l2c.report.figures import save_figure
from l2c.report.sample_grid import sample_grid
from l2c.testbeds.emoji import CLASSES


def main() -> None:
    """Load the samples, sort them by label, draw."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("samples", type=Path, help="samples.safetensors of `l2c sample`")
    options.add_argument("--output", type=Path, default=Path("classes.png"))
    given = options.parse_args()
    tensors = load_file(given.samples)
    rows = {name: tensors["images"][tensors["labels"] == label] for label, name in enumerate(CLASSES)}
    save_figure(sample_grid({name: images for name, images in rows.items() if len(images)}), given.output)
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
