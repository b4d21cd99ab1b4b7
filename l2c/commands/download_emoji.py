"""Fetch the emoji that the picture testbed is trained on, 41 MB, and pack them as one file of 5 MB.

l2c download-emoji
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from l2c.commands.frame.arguments import Arguments


def main(arguments: Sequence[str]) -> None:
    """Parse, fetch, say where the file is."""
    parser = Arguments(
        "download-emoji",
        "Fetch the emoji of the picture testbed, 41 MB, and pack them as one file of 5 MB.",
    )
    parser.add_argument("--pictures", type=Path, help="the packed npm package @lobehub/fluent-emoji-3d 1.1.0")
    parser.add_argument("--names", type=Path, help="the packed npm package emoji-datasource 16.0.0")
    given = parser.parse_args(arguments)
    from l2c.testbeds.emoji import fetch_emoji

    print(f"wrote {fetch_emoji(given.pictures, given.names)}")
