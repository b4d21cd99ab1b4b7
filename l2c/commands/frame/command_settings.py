"""Settings of single commands; `commands.frame.settings` checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from l2c.calibration.settings import CalibrationSettings
from l2c.drawing.settings import DrawingSettings
from l2c.evaluation.comparison_settings import ComparisonSettings
from l2c.graph.checks import MAX_EVALUATIONS
from l2c.graph.layer_names import LAYER_KINDS, WHOLE_OUTPUT
from l2c.io.numbers import AT_ONCE, LARGEST_SEED
from l2c.io.settings import (
    Anything,
    Either,
    Flag,
    Items,
    Number,
    Settings,
    Table,
    Text,
    flag,
    number,
    ruled,
    text,
    whole,
)
from l2c.policies.budget import Budget
from l2c.policies.settings import BUDGET
from l2c.sampling.solver_settings import LARGEST_SCALE
from l2c.testbeds.settings import PIXEL_SETTINGS, SKIN_TONES, BackboneTraining, ClassifierTraining
from l2c.training.corrections.settings import CorrectionSettings
from l2c.training.settings import THREADS

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
MATMULS = ("default", "onednn")
COUNT = Number(whole=True, at_least=1)


def optional_text(**more: Any) -> Any:
    """Return a field for a text or null."""
    return text(None, optional=True, **more)


def count(default: int | None = None, *, at_least: int = 1, at_most: int | None = None) -> Any:
    """Return a field for a whole number from 1 on; null is allowed where it is the default."""
    example = None if default else at_least
    return whole(default, at_least=at_least, at_most=at_most, optional=default is None, example=example)


def seed(default: int) -> Any:
    """Return a field for a seed."""
    return whole(default, at_least=0, at_most=LARGEST_SEED)


def scale() -> Any:
    """Return a field for a guidance scale or null."""
    return number(None, at_least=0, at_most=LARGEST_SCALE, optional=True, example=1.5)


def _kinds_of_layers(*choices: str) -> Items:
    """Return the rule of a setting for one of some kinds of layers, a list of them, or null."""
    return Items(item=Text(choices=choices), single=True, optional=True, example=(choices[0],))


@dataclass(frozen=True)
class ModelSettings(Settings, group="model"):
    """A preset of ours; see configs/model."""

    name: str = text()
    backbone: str = text(choices=("dit", "uvit"))
    args: dict[str, Any] = ruled(
        Table(item=Either(rules=(Flag(), Number(whole=True, at_least=-1, at_most=2**20)))), {}
    )
    checkpoint: str | None = optional_text()
    url: str | None = optional_text()
    schedule: str | None = optional_text()
    first_timestep: float | None = number(None, at_least=0, optional=True)
    null_label: int | None = whole(None, at_least=0, optional=True)
    prediction: str | None = optional_text()
    sampling: dict[str, Any] = ruled(Anything(), {})
    data: str = text("noise")
    testbed: str | None = optional_text()
    layers: Any = ruled(_kinds_of_layers(WHOLE_OUTPUT), None)


@dataclass(frozen=True)
class PipelineSettings(Settings, group="model"):
    """The denoiser of a diffusers pipeline (`backend=diffusers`)."""

    name: str = text("pipeline", choices=("pipeline",))
    pipeline: str = text()
    checkpoint: str | None = optional_text()
    data: str = text("prompts")
    prompts: str | None = optional_text()
    layers: Any = ruled(_kinds_of_layers(*LAYER_KINDS), None)
    dtype: str = text("float32", choices=("float32", "float16", "bfloat16"))
    device: str = text("cpu")
    options: dict[str, Any] | None = ruled(Table(item=Anything(optional=True), optional=True), None)


@dataclass(frozen=True)
class CommandSettings(Settings):
    """Settings at the top of a command's configuration; `DOING` and `LOWERS` are for running out of memory."""

    DOING: ClassVar[str] = "working"
    LOWERS: ClassVar[tuple[str, ...]] = ()

    pipeline: str | None = optional_text()  # of backend=diffusers
    prompts: str | None = optional_text()


@dataclass(frozen=True)
class TrainRouter(CommandSettings):
    """train_router; its other settings are those of `RouterTraining`."""

    DOING: ClassVar[str] = "preparing the training of routers"
    LOWERS: ClassVar[tuple[str, ...]] = ("data.batch_size",)

    seed: int = seed(0)
    resume: str | None = optional_text(example="auto")
    recompute_activations: bool = flag(False)
    checkpoint_every_n_steps: int = count(50)
    heatmap_every_n_steps: int = count(100)


@dataclass(frozen=True)
class TrainScaleShift(CommandSettings, CorrectionSettings):
    """train_scale_shift."""

    DOING: ClassVar[str] = "training a correction"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size",)

    graph: str | None = optional_text()
    checkpoint: str | None = optional_text()
    cfg_scale: float | None = scale()
    num_threads: int | None = count(at_most=THREADS)


@dataclass(frozen=True)
class Sampling(CommandSettings):
    """Settings of how our sampler runs."""

    graph: str | None = optional_text()
    checkpoint: str | None = optional_text()
    cfg_scale: float | None = scale()
    precision: str | None = optional_text(choices=PRECISIONS)
    matmul: str = text("default", choices=MATMULS)
    compile: bool = flag(False)
    capture: bool = flag(False)
    cache_dtype: str | None = optional_text(choices=PRECISIONS)
    cache_device: str | None = optional_text()


@dataclass(frozen=True)
class Sample(Sampling):
    """sample."""

    DOING: ClassVar[str] = "sampling images"
    LOWERS: ClassVar[tuple[str, ...]] = ("num_images", "labels")

    num_evaluations: int | None = count(at_most=MAX_EVALUATIONS)
    labels: Any = ruled(Items(item=Number(whole=True, at_least=0), single=True, optional=True, example=(3, 7)), None)
    num_images: int = count(10, at_most=AT_ONCE)
    seed: int = seed(0)
    device: str | None = optional_text()


@dataclass(frozen=True)
class SampleMany(Sampling, DrawingSettings):
    """sample_many."""

    DOING: ClassVar[str] = "drawing images"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size", "shard_size")

    vae: str = text("stabilityai/sd-vae-ft-ema")
    npz: bool = flag(True)


@dataclass(frozen=True)
class Evaluate(CommandSettings):
    """evaluate."""

    DOING: ClassVar[str] = "judging a graph"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size", "timing_batch", "num_images")

    graph: str | None = optional_text()
    checkpoint: str | None = optional_text()
    cfg_scale: float | None = scale()
    num_images: int | None = count(at_least=2, at_most=10**9)
    batch_size: int | None = count(at_most=AT_ONCE)
    seed: int = seed(1000)
    baselines: Any = ruled(Items(item=Text(choices=("fewer_steps", "random")), nonempty=False), [])
    random_draws: int = count(5, at_most=1000)
    timing_batch: int = count(16, at_most=AT_ONCE)
    timing_repetitions: int = count(5)
    device: str | None = optional_text()
    num_threads: int | None = count(at_most=THREADS)
    reference: str | None = optional_text()
    samples: str | None = optional_text()
    features: str | None = optional_text(choices=("inception", "digits"))
    inception: str | None = optional_text()
    save_statistics: str | None = optional_text()
    precision: str | None = optional_text(choices=PRECISIONS)
    vae: str = text("stabilityai/sd-vae-ft-ema")
    labels: str = text("balanced", choices=("balanced", "random"))
    shard_size: int = count(512)


@dataclass(frozen=True)
class Compare(CommandSettings, ComparisonSettings):
    """compare."""

    DOING: ClassVar[str] = "comparing methods"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size", "timing_batch", "num_images")

    only: Sequence[str] | None = ruled(Items(item=Text(), optional=True, example=("gram", "best")), None)
    num_threads: int | None = count(at_most=THREADS)


@dataclass(frozen=True)
class Calibrate(CommandSettings, CalibrationSettings):
    """calibrate."""

    DOING: ClassVar[str] = "calibrating"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size", "num_trajectories", "responses.max_age")

    output: str | None = optional_text()
    parts: Sequence[str] | str | None = ruled(Items(item=Text(), single=True, optional=True), None)
    budget: Budget | None = ruled(BUDGET, None)
    num_threads: int | None = count(at_most=THREADS)


@dataclass(frozen=True)
class MakeGraph(CommandSettings):
    """make_graph."""

    DOING: ClassVar[str] = "making a graph"
    LOWERS: ClassVar[tuple[str, ...]] = ("policy.batch_size", "policy.eval_batch_size")

    budget: Budget | None = ruled(BUDGET, None)
    calibration: str | None = optional_text()


@dataclass(frozen=True)
class EncodeLatents(CommandSettings):
    """encode_latents."""

    DOING: ClassVar[str] = "encoding images"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size", "shard_size", "image_size")

    images: str | None = optional_text()
    output: str = text("data/latents")
    vae: str = text("stabilityai/sd-vae-ft-ema")
    image_size: int = whole(256, at_least=8, at_most=8192)
    batch_size: int = count(32, at_most=AT_ONCE)
    shard_size: int = count(4096)
    mirrored: bool = flag(True)


@dataclass(frozen=True)
class ImportRouter(CommandSettings):
    """import_router."""

    DOING: ClassVar[str] = "converting a router"

    file: str | None = optional_text()
    graph: str | None = optional_text()
    checkpoint: str | None = optional_text()
    num_evaluations: int | None = count(at_most=MAX_EVALUATIONS)
    threshold: float | None = number(None, at_least=0, at_most=1, optional=True, example=0.1)
    routed: Any = ruled(
        Either(
            rules=(Text(choices=("l2c",)), Items(item=Number(whole=True, at_least=0))), optional=True, example="l2c"
        ),
        None,
    )
    output: str | None = optional_text()


@dataclass(frozen=True)
class TrainBackbone(CommandSettings, BackboneTraining):
    """train_backbone."""

    DOING: ClassVar[str] = "training a backbone"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size",)

    dataset: str = text(choices=(*PIXEL_SETTINGS, "folder"))
    dataset_options: dict[str, str] = ruled(
        Either(
            rules=(
                Table(item=Text(choices=SKIN_TONES), names=("skin_tones",)),
                Table(item=Text(), names=("folder",)),
            ),
            example="{folder: PATH}",
        ),
        {},
    )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result; images of a folder are known by a digest of theirs."""
        said = super().identity()
        return {name: value for name, value in said.items() if (name, self.dataset) != ("dataset_options", "folder")}


@dataclass(frozen=True)
class TrainClassifier(CommandSettings, ClassifierTraining):
    """train_classifier."""

    DOING: ClassVar[str] = "training the classifier"
    LOWERS: ClassVar[tuple[str, ...]] = ("batch_size",)
