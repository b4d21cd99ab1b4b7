"""Every command, with settings that make it quick, and the files that are its result."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from emoji_packages import packages_in
from PIL import Image

from l2c.commands.frame.table import COMMANDS

TINY = ["model=dit_digits", *(f"model.args.{name}" for name in ("hidden_size=32", "depth=2", "num_heads=2"))]
RANDOM = [*TINY, "model.checkpoint=random"]
FOLDER = "run"
LOCAL, ADDRESS = "weights.bin", "address"  # among the inputs: a file, and that of a server which sends another


@dataclass(frozen=True)
class Cheap:
    """A command.

    Attributes:
        arguments: its name and settings; it runs from a folder of its own.
        results: patterns of the files that two runs write alike, but for times; see `without_times`.
        resumes: whether it goes on where a killed one stopped, by `resume=auto`.
        large: settings that take a gigabyte and more; none where nothing of it grows.

    """

    arguments: tuple[str, ...]
    results: tuple[str, ...]
    resumes: bool = False
    large: tuple[str, ...] = ()

    @property
    def line(self) -> list[str]:
        """The arguments, with the run's folder where the command has one."""
        if not COMMANDS[self.arguments[0]].hydra:
            return [*self.arguments]
        resume = ["resume=auto"] if self.resumes else []
        return [*self.arguments, f"hydra.run.dir={FOLDER}", *resume]


# Of results.json: what is measured with a clock, or told of it.
TIMED = {
    "latency",
    "uncached",
    "cached",
    "cached_times",
    "speed_up",
    "spread",
    "efficiency",
    "images_per_second",
    "notes",
}


def without_times(path: Path) -> object:
    """Return what a file of results says but for times: reports without numbers, other files as they are."""
    if path.name == "results.json":
        return _untimed(json.loads(path.read_text()))
    if path.name in ("report.md", "report.html"):
        return re.sub(r"[\d.,]+|[\s-]+", " ", path.read_text())
    return path.read_bytes()


def _untimed(value: object) -> object:
    if isinstance(value, list):
        return [_untimed(member) for member in value]
    if isinstance(value, dict):
        return {name: _untimed(member) for name, member in value.items() if name not in TIMED}
    return value


def prepare(folder: Path) -> None:
    """Write what the commands read: images, an autoencoder, a router file, weights, packages of emoji."""
    from tiny_diffusers import make_vae

    for label in "ab":
        (folder / "images" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (16, 16), (80 * i, 0, 255 * (label == "a"))).save(folder / "images" / label / f"{i}.png")
    make_vae().save_pretrained(folder / "vae")
    (folder / LOCAL).write_bytes(bytes(range(256)) * 2**15)
    packages_in(folder)
    torch.save({f"{i}.prob": torch.linspace(-2, 2, 16) for i in range(20)}, folder / "router.pt")


def commands(inputs: Path) -> dict[str, Cheap]:
    """Return the commands by name.

    Args:
        inputs: the folder that `prepare` filled.

    """
    trainer = ("trainer.accelerator=cpu", "data=noise")
    steps = ("trainer.max_steps=6", "checkpoint_every_n_steps=2", "+trainer.enable_progress_bar=false")
    measured = (
        "true_errors=1",
        "measure=[changes,responses]",
        "responses.num_probes=1",
        "output=c.safetensors",
    )
    one = ("~methods", "+methods={fewer_steps: null}", "num_seeds=1")
    latents = ("batch_size=2", "output=latents")
    small = ("timing_batch=1", "timing_repetitions=1")
    graph = "graph=dit_digits_ddim20"
    address = (inputs / ADDRESS).read_text() if (inputs / ADDRESS).is_file() else "http://127.0.0.1:1/weights.pt"
    fetched = ("w.pt",)
    return {
        "show": Cheap(("show", "dit_digits_ddim20", "output=graph.png"), ("graph.png",)),
        "download": Cheap(("download", "dit_xl2", f"--file={inputs / LOCAL}", "--output=w.pt"), fetched),
        "download by the network": Cheap(("download", "dit_xl2", f"--url={address}", "--output=w.pt"), fetched),
        "download-emoji": Cheap(
            ("download-emoji", f"--pictures={inputs}/pictures.tgz", f"--names={inputs}/names.tgz"),
            (f"{FOLDER}/emoji_32.npz",),
        ),
        "train": Cheap(
            ("train", *RANDOM, "solver.num_evaluations=4", *trainer, "data.batch_size=2", *steps),
            ("run/cache_graph.json",),
            resumes=True,
            large=("data.batch_size=200000",),
        ),
        "correct": Cheap(
            ("correct", graph, "max_steps=2", "batch_size=1", "loss=output", "accelerator=cpu"),
            ("run/cache_graph.json", "run/cache_graph.safetensors"),
            resumes=True,
            large=("batch_size=100000",),
        ),
        "calibrate": Cheap(
            ("calibrate", "solver.num_evaluations=3", "num_trajectories=2", "batch_size=2", *measured),
            ("c.safetensors",),
            large=("num_trajectories=100000", "batch_size=100000"),
        ),
        "graph": Cheap(("graph", "policy=interval", "solver.num_evaluations=4"), ("run/cache_graph.json",)),
        "sample": Cheap(
            ("sample", graph, "num_images=2"), ("run/samples.safetensors",), large=("num_images=100000",)
        ),
        "sample-many": Cheap(
            ("sample-many", graph, "num_images=6", "batch_size=2", "shard_size=2", "trainer.accelerator=cpu"),
            ("run/samples-*.safetensors", "run/samples.npz"),
            large=("num_images=100000", "batch_size=100000", "shard_size=100000"),
        ),
        "evaluate": Cheap(
            ("evaluate", graph, "num_images=2", "batch_size=2", *small, "random_draws=1"),
            ("run/results.json", "run/report.*", "run/*.png"),
            large=("num_images=100000", "batch_size=100000"),
        ),
        "compare": Cheap(
            ("compare", "solver.num_evaluations=4", "num_images=2", "batch_size=2", "budgets=[3]", *small, *one),
            ("run/targets.safetensors", "run/graphs/*.json", "run/samples/*"),
            large=("num_images=100000", "batch_size=100000"),
        ),
        "benchmark": Cheap(
            ("benchmark", *RANDOM, "mode=[eager]", "repetitions=1", "by_evaluation=false", "device=cpu"),
            ("run/results.json", "run/report.md"),
            large=("batch_sizes=[300000]",),
        ),
        "score": Cheap(("evaluate", "samples=digits", "reference=digits"), ("run/scores.json",)),
        "schedule": Cheap(
            ("import", "graph=dit_digits_ddim20", "output=s.json"),
            ("s.json",),
        ),
        "encode": Cheap(
            ("encode", f"images={inputs}/images", f"vae={inputs}/vae", "image_size=16", "shard_size=2", *latents),
            ("latents/*",),
        ),
        "import": Cheap(
            ("import", f"file={inputs}/router.pt", "model=dit_digits", "num_evaluations=20", "threshold=0.1"),
            ("run/cache_graph.json",),
        ),
        "train-backbone": Cheap(
            ("train-backbone", *TINY, "max_steps=4", "batch_size=2", "output=w.safetensors"),
            ("w.safetensors",),
            resumes=True,
            large=("batch_size=200000",),
        ),
        "train-classifier": Cheap(
            ("train-classifier", "max_steps=3", "batch_size=2", "output=w.safetensors"),
            ("w.safetensors",),
            large=("batch_size=1000000",),
        ),
    }
