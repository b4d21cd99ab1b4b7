"""The parts of the measurement in order of worth; nothing is imported here, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """One part of the measurement.

    Attributes:
        name: as `--parts` names it.
        module: within this package; its function `measure` takes a Task and the options.
        share: seconds of a whole run; what earlier parts leave over is shared among the later ones alike.
        does: what it measures, for `--help`.
        options: further arguments of `measure`.

    """

    name: str
    module: str
    share: float
    does: str
    options: tuple[str, ...] = ()


PARTS = (
    Part("tests", "cuda_tests", 50, "the tests that need a CUDA device"),
    Part(
        "dit",
        "trajectories",
        110,
        "DiT-XL/2: uncached, cached; eager, captured, compiled; published scheme",
        ("dit",),
    ),
    Part("uvit", "trajectories", 95, "U-ViT-H/2: the same", ("uvit",)),
    Part("attention", "attention", 20, "the ways torch has to compute attention, alone and in DiT-XL/2"),
    Part("memory", "memory", 20, "what the cache takes on the device beside what is predicted"),
    Part("training", "training", 35, "a step of router training beside the published scheme"),
    Part("calibration", "calibration", 40, "calibrating DiT-XL/2: seconds and memory"),
    Part("pipeline", "pipelines", 90, "a pipeline of Flux's size beside other packages' caches at the same reuse"),
    Part("drawing", "drawing", 40, "images per second of sample_many"),
)


@dataclass(frozen=True)
class Settings:
    """What all parts have in common."""

    device: str | None
    tiny: bool
    router: Path | None
