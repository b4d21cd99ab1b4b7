"""Fetch the emoji pictures that the picture testbed is trained on, 41 MB, and pack them as one file of 5 MB.

python scripts/download_emoji.py
python scripts/download_emoji.py --pictures fluent-emoji-3d-1.1.0.tgz --names emoji-datasource-16.0.0.tgz
"""

import argparse
import sys
from pathlib import Path

from l2c.testbeds.emoji import fetch_emoji


def main() -> None:
    """Parse, fetch, say where the file is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="the packed npm package @lobehub/fluent-emoji-3d 1.1.0")
    parser.add_argument("--names", type=Path, help="the packed npm package emoji-datasource 16.0.0")
    arguments = parser.parse_args()
    try:
        print(f"wrote {fetch_emoji(arguments.pictures, arguments.names)}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
