"""The commands of `l2c` by name, and how to write one as a line for a shell; imports nothing heavy."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

TRACEBACK = "L2C_TRACEBACK"  # the environment variable that makes commands raise instead of printing a sentence


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        module: its module in `l2c.commands`, which has `main`.
        summary: one line for the list of commands.
        script: its script in a checkout; None where it has none.
        hydra: whether it takes a Hydra config, `configs/<module>.yaml`.
        writes: patterns of the files that it writes into its run folder, where it does not look itself what is there.

    """

    module: str
    summary: str
    script: str | None = None
    hydra: bool = True
    writes: tuple[str, ...] = ()


def _scripted(module: str, summary: str, *, hydra: bool = True, writes: str = "") -> Command:
    return Command(module, summary, f"scripts/{module}.py", hydra, tuple(writes.split()))


GRAPH = "cache_graph.json graph.png"
REPORT = "report.html report.md results.json"
COMMANDS = {
    "train": Command("train_router", "train routers and export them as a cache graph", "train_router.py"),
    "calibrate": _scripted("calibrate", "measure a model once, for the policies that need it", writes=GRAPH),
    "graph": _scripted("make_graph", "make a cache graph by a policy, without training", writes=GRAPH),
    "correct": _scripted("train_scale_shift", "train slopes, scales and shifts of what a graph reuses"),
    "show": Command("show", "print what a graph does, draw it as a heat map", hydra=False),
    "sample": _scripted(
        "sample", "draw images, with or without a graph", writes="samples.safetensors samples.png image-*.png"
    ),
    "sample-many": _scripted("sample_many", "draw many images, for FID and other scores", writes="samples.npz"),
    "evaluate": _scripted(
        "evaluate",
        "evaluate a graph: error, cost, time; or score images against real ones",
        writes=f"{REPORT} samples.png graph.png scores.json",
    ),
    "compare": _scripted(
        "compare",
        "compare methods at equal cost: table, curves, report",
        writes="settings.json targets.safetensors table.md table.csv pareto.* report.html cells/* samples/* graphs/*",
    ),
    "benchmark": _scripted(
        "benchmark", "time a graph beside the uncached sampler", writes=f"{REPORT} evaluations.png"
    ),
    "download": _scripted("download_weights", "fetch the published weights of a model", hydra=False),
    "download-emoji": _scripted("download_emoji", "fetch the pictures of the picture testbed", hydra=False),
    "import": _scripted("import_router", "turn other projects' routers and schedules into graphs, and back"),
    "encode": _scripted("encode_latents", "encode images into latents, to train routers on"),
    "train-backbone": _scripted("train_backbone", "train a small backbone of the testbed"),
    "train-classifier": _scripted("train_classifier", "train the classifier that reads digits or emoji"),
}


def spelled(name: str) -> str:
    """Return the beginning of a command's line, as this process itself was started.

    `l2c train`, `python -m l2c train`, or where a script was started from its checkout `python train_router.py`.
    """
    started = Path(sys.argv[0]) if sys.argv else Path("l2c")
    script = COMMANDS[name].script
    if _is_module(started):
        return f"python -m l2c {name}"
    if started.suffix == ".py" and script is not None and Path(script).is_file():
        return f"python {script}"
    return f"l2c {name}"


def _is_module(started: Path) -> bool:
    """Return whether a process was started as `python -m l2c`."""
    return started.name == "__main__.py" and started.parent.name == "l2c"


def command_line(name: str, *words: str, **settings: object) -> str:
    """Return a command's line, quoted such that a shell and Hydra read it as it is meant.

    Args:
        name: the command.
        words: overrides as Hydra reads them, `model=dit_digits`; empty ones are left out.
        settings: values of settings, paths for example; None is left out.

    """
    given = [*filter(None, words), *(override(name, value) for name, value in settings.items() if value is not None)]
    return " ".join([spelled(name), *map(shlex.quote, given)])


def this_command_line() -> str:
    """Return the line that started this process, for reports."""
    started = Path(sys.argv[0])
    if _is_module(started):
        head = ["python", "-m", "l2c"]
    else:
        head = ["python", sys.argv[0]] if started.suffix == ".py" else [started.name]
    return " ".join(map(shlex.quote, [*head, *sys.argv[1:]]))


def override(name: str, value: object) -> str:
    """Return `name=value` as Hydra's override grammar reads it, a text with other characters in quotes."""
    text = str(value)
    if isinstance(value, str | Path) and not re.fullmatch(r"[\w./:%@+~-]+", text):
        text = "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"
    return f"{name}={text}"


def python_line(path: Path | str, kind: str = "CacheGraph") -> str:
    """Return the line of Python with which a pipeline takes the graph of a file, or its `CacheGraphs`."""
    return f"l2c.apply(pipe, l2c.{kind}.load({str(path)!r}))"
