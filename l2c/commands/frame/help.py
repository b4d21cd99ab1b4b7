"""The page that `--help` of a command prints: its header, the groups it takes, its settings with what they mean.

The meanings are the comments of the config files, so that a setting is explained in one place.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from l2c.io.bundled import project_folder

KEY = re.compile(r"(?P<indent> *)(?:- (?:optional |override )?)?(?P<key>[\w/]+):(?P<value>.*)")
COMMENT = re.compile(r"\s#\s+(?P<said>\S.*)")
COLUMN, WIDTH = 38, 118
Keys = tuple[str, ...]


def help_page(*, _root_: DictConfig) -> str:
    """Return the page of a composed config, whose node `hydra` says command, header and chosen groups.

    Dollars are doubled, since Hydra substitutes the names after them.
    """
    hydra = _root_.hydra
    configs = project_folder("configs")
    own = configs / f"{hydra.job.config_name}.yaml"
    chosen = {name: option for name, option in hydra.runtime.choices.items() if "hydra" not in name}
    said: dict[Keys, str] = {}
    for name, option in chosen.items():
        for file in reversed(list(_files(configs / name, option))):
            of_all = "@package _global_" in file.read_text(encoding="utf-8")
            said.update(_comments(file, () if of_all else (name,)))
    said.update(_comments(own, ()))
    settings = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(settings, dict)
    del settings["hydra"]
    parts = [hydra.help.header.rstrip()]
    if chosen:
        parts.append(
            "Groups (group=choice), with the choice that is made:\n" + "\n".join(_groups(configs, chosen, said))
        )
    parts.append("Settings (key=value), with their defaults:\n" + "\n".join(_explained(settings, said)))
    return "\n\n".join(parts).replace("$", "$$")


def _groups(configs: Path, chosen: dict[str, str | None], said: dict[Keys, str]) -> Iterator[str]:
    """Yield the lines of each group: its choice, what it is, all that may be chosen."""
    for name, option in chosen.items():
        comment = said.get(("defaults", name), "")
        yield _with_comment(f"{name}={'null' if option is None else option}", comment)
        options = ", ".join(sorted(path.stem for path in (configs / name).glob("*.yaml")))
        yield textwrap.fill(options, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _explained(settings: object, said: dict[Keys, str]) -> Iterator[str]:
    """Yield the lines of settings as YAML, each key with its comment."""
    for line, path in _keys(OmegaConf.to_yaml(settings).splitlines()):
        yield _with_comment(line, said.get(path, ""))


def _with_comment(line: str, comment: str) -> str:
    return f"{line:<{COLUMN}}  # {comment}" if comment else line


def _files(folder: Path, option: str | None) -> Iterator[Path]:
    """Yield the file of a group's option, then those of the group that it begins with."""
    file = folder / f"{option}.yaml"
    if option is None or not file.is_file():
        return
    yield file
    content = OmegaConf.load(file)
    assert isinstance(content, DictConfig)
    for begun in content.get("defaults", ()):
        if isinstance(begun, str):
            yield from _files(folder, begun)


def _comments(file: Path, prefix: Keys) -> dict[Keys, str]:
    """Return the comments behind the keys of a config file, by the keys' paths below a prefix."""
    found = {}
    for line, path in _keys(file.read_text(encoding="utf-8").splitlines()):
        if path and (match := COMMENT.search(line)):
            found[prefix + path] = match["said"]
    return found


def _keys(lines: list[str]) -> Iterator[tuple[str, Keys]]:
    """Yield the lines of YAML in block style, each with the path of its key; an empty path where it has none."""
    above: list[tuple[int, str]] = []
    for line in lines:
        match = KEY.fullmatch(line)
        if match is None:
            yield line, ()
            continue
        listed = line.lstrip().startswith("- ")
        indent = len(match["indent"]) + listed  # a list may begin below its key, not to the right of it
        while above and above[-1][0] >= indent:
            above.pop()
        above.append((indent, match["key"]))
        yield line, tuple(key for _, key in above)
