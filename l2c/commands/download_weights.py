"""Fetch the published weights of a model into checkpoints/; run again to continue a broken download.

l2c download dit_xl2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from l2c.commands.frame.arguments import Arguments
from l2c.commands.frame.table import COMMANDS, spelled
from l2c.io.atomic import output_file
from l2c.io.bundled import own_checkpoint_folder, project_folder
from l2c.io.download import direct_address, download, keep_local

if TYPE_CHECKING:
    from l2c.backbones.presets import ModelPreset

NAME = "download"


def main(arguments: Sequence[str]) -> None:
    """Parse, download or copy, say where the file is."""
    parser = Arguments(
        NAME,
        "Fetch the published weights of a model; run again to continue a broken download.",
    )
    parser.add_argument("name", help="a model: dit_xl2, uvit_h2, ... (a file of configs/model)")
    parser.add_argument("--url", help="another address than the published one")
    parser.add_argument(
        "--file", type=Path, help="a file on this machine, to be checked and copied; needs no network"
    )
    parser.add_argument(
        "--output",
        help="where to write; the default is the published name in checkpoints/ or in $L2C_CHECKPOINTS",
    )
    parser.add_argument("--sha256", help="digest that the file must have, where you know it")
    given = parser.parse_args(arguments)
    print(_fetch(given))


def _fetch(given: argparse.Namespace) -> str:
    """Download or copy the file; return what was done."""
    from l2c.backbones.presets import model_preset

    try:
        preset = model_preset(given.name)
    except ValueError as error:
        if (other := f"{NAME}-{given.name}") in COMMANDS:
            own = f"{given.name} has a command of its own, {spelled(other)} ({COMMANDS[other].summary})"
            raise ValueError(f"{own}; {error}") from error
        raise
    if given.file is not None and given.url is not None:
        raise ValueError("--file and --url are two sources of one file; give one of them")
    wanted = given.output or own_checkpoint_folder() / str(preset.checkpoint)
    with output_file("--output", wanted, ours=lambda there: True) as output:  # what is there is never replaced
        return _fetch_to(output, given, preset)


def _fetch_to(output: Path, given: argparse.Namespace, preset: ModelPreset) -> str:
    """Download or copy the file to a path; return what was done."""
    if given.file is not None:
        return f"wrote {keep_local(given.file, output, sha256=given.sha256)}"
    url = given.url or preset.url
    if url is None:
        if (project_folder("checkpoints") / str(preset.checkpoint)).is_file():
            raise ValueError(f"the weights of {given.name} come with l2c; there is nothing to download")
        raise ValueError(f"no weights of {given.name} are published; say --url ADDRESS or --file PATH")
    if given.url is None and Path(url).suffix not in (".pt", ".pth") and "drive.google.com" not in url:
        raise ValueError(
            f"the weights of {given.name} have no direct address; find them from {url} and save them as {output}"
        )
    done = "found" if output.is_file() else "wrote"
    return f"{done} {download(direct_address(url), output, sha256=given.sha256)}"
