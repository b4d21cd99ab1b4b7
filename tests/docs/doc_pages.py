"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import l2c

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "checkpoints" / "README.md",
    *(ROOT / "docs").rglob("*.md"),
]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
FEW_EVALUATIONS = "solver.num_evaluations=6"  # of what is calibrated, and of the graphs that are made from it
# Settings that make a command short.
SMALL = {
    "train": ["trainer.max_steps=2"],
    "train-backbone": ["max_steps=2", "model.args.hidden_size=24", "model.args.depth=2", "batch_size=4"],
    "train-classifier": ["max_steps=2", "batch_size=8"],
    "calibrate": [
        "num_trajectories=2",
        "batch_size=2",
        "responses.num_probes=1",
        "responses.max_age=4",
        "true_errors=2",
    ],
    "graph": [],
    "correct": ["max_steps=1", "batch_size=2"],
    "sample": ["num_images=3"],
    "sample-many": ["num_images=4", "shard_size=2", "batch_size=2"],
    "evaluate": ["num_images=4", "timing_repetitions=1", "timing_batch=2", "random_draws=1"],
    "compare": ["num_images=4", "timing_repetitions=1", "timing_batch=2", "num_seeds=1"],
    "benchmark": ["repetitions=1", "batch_sizes=[1]", "baseline=null"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: the page, relative to the root.
        mark: the comment right before it, such as `needs other data`; empty where there is none.
        language: `python`, or empty for commands.
        text: what it holds.

    """

    page: str
    mark: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    return [Block(name, m["mark"] or "", m["language"], m["text"]) for m in BLOCK.finditer(text)]


def indented(page: Path) -> list[str]:
    """Return the commands of a page that stand in indented lines."""
    lines = page.read_text(encoding="utf-8").splitlines()
    joined = re.sub(r"\\\n\s*", "", "\n".join(line[4:] for line in lines if line.startswith("    ")))
    return [line for line in joined.splitlines() if line.startswith("l2c ")]


def commands(text: str) -> list[list[str]]:
    """Return the calls of `l2c` in a block of commands, as words; other programs are left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    variables: dict[str, str] = {}
    calls = []
    for line in joined.splitlines():
        assigned = re.fullmatch(r'(\w+)="(.*)"', line.strip())
        if assigned:
            variables[assigned[1]] = assigned[2]
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        for start in (["l2c"], ["python", "train_router.py"], ["train_router.py"]):
            if words[: len(start)] == start:
                calls.append(["train", *words[1:]] if start != ["l2c"] else words[1:])
        if words[:1] in (["torchrun"], ["srun"]):
            after = next((i for i in range(len(words) - 2) if words[i : i + 2] == ["-m", "l2c"]), None)
            if after is not None:
                calls.append(words[after + 2 :])
            elif "train_router.py" in words:
                calls.append(["train", *words[words.index("train_router.py") + 1 :]])
    return [call for call in calls if call and not call[0].startswith("-")]


def linear_graph(folder: Path) -> Path:
    """Return the file of a graph whose slopes can be trained, written into a folder."""
    graph = l2c.CacheGraph.load("dit_digits_ddim20")
    graph.replace(reuse=("linear",) * graph.num_evaluations).save(folder / "linear.json")
    return folder / "linear.json"
