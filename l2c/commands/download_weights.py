"""Fetch the published weights of a model into checkpoints/; run again to continue a broken download.

python scripts/download_weights.py dit_xl2
"""

import argparse
import os
import sys
from pathlib import Path

from l2c.backbones.presets import model_names, model_preset
from l2c.io.bundled import project_folder
from l2c.io.download import direct_address, download


def main() -> None:
    """Parse, download, say where the file is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"a model: {', '.join(model_names())}")
    parser.add_argument("--url", help="another address than the published one")
    parser.add_argument("--output", type=Path, help="another file than the one in checkpoints/")
    parser.add_argument("--sha256", help="digest that the file must have, where you know it")
    arguments = parser.parse_args()
    try:
        preset = model_preset(arguments.name)
        folder = Path(os.environ.get("L2C_CHECKPOINTS", project_folder("checkpoints")))
        output = arguments.output or folder / preset.checkpoint
        url = arguments.url or preset.get("url")
        if url is None:
            raise ValueError(
                f"no weights of {arguments.name} are published; bring your own with model.checkpoint=PATH, or say "
                "--url ADDRESS"
            )
        if arguments.url is None and Path(url).suffix not in (".pt", ".pth") and "drive.google.com" not in url:
            raise ValueError(
                f"the weights of {arguments.name} have no direct address; find them from {url} and save them as "
                f"{output}"
            )
        sha256 = arguments.sha256 or (preset.get("sha256") if arguments.url is None else None)
        size = preset.get("size") if arguments.url is None else None
        print(f"wrote {download(direct_address(url), output, size=size, sha256=sha256)}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
