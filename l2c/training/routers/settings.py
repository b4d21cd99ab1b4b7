"""Settings of router training: one frozen dataclass a group, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from l2c.graph.given import instance
from l2c.graph.predictor import HOLD, RULES
from l2c.io.names import chosen
from l2c.io.numbers import LARGEST_SEED
from l2c.io.settings import Either, Number, Settings, Text, flag, number, ruled, text, whole
from l2c.policies.budget import Budget
from l2c.policies.settings import BudgetRule
from l2c.sampling.solver_settings import SolverSettings
from l2c.training.settings import LoggerSettings, TrainerSettings

FROM_NOISE = ("noise", "prompts")


@dataclass(frozen=True)
class RouterSettings(Settings, group="router"):
    """Learning-to-Cache (arXiv 2406.01733); `l2c` and `l2c_summed` differ in their presets alone.

    Attributes:
        name: name of the objective.
        penalty: lambda; a larger one removes more layers. None where the run finds it (`budget`).
        penalty_weights: cost of a layer: its share of the layers' `macs`, or `ones`.
        error: squared error of a sample: `mean` (DiT) or `sum` (U-ViT) over its outputs.
        init: start of all logits, or `normal` for N(0, 1).
        learning_rate: learning rate of AdamW, without weight decay.
        clamp: logits stay in [-clamp, clamp].
        threshold: a layer is computed where sigmoid(logit) > threshold.
        straight_through: the student sees the thresholded row, with the soft one's gradient.
        label_dropout: share of labels replaced by the null label.
        visits: `balanced`: each router once per cycle; `random`: one drawn each step.
        round_times: train at whole timesteps.
        reuse: predictor of a reused layer's output: `hold`, `linear`, `taylor1`, `taylor2` or `foca`; see
            `policies.rules`.

    """

    name: str = text("l2c", choices=("l2c", "l2c_summed"))
    penalty: float | None = number(3e-4, at_least=0)
    penalty_weights: str = text("macs", choices=("macs", "ones"))
    error: str = text("mean", choices=("mean", "sum"))
    init: float | str = ruled(Either(rules=(Number(), Text(choices=("normal",)))), 2.0)
    learning_rate: float = number(0.2, above=0)
    clamp: float = number(5.0, above=0)
    threshold: float = number(0.5, at_least=0, at_most=1)
    straight_through: bool = flag(False)
    label_dropout: float = number(0.1, at_least=0, at_most=1)
    visits: str = text("balanced", choices=("balanced", "random"))
    round_times: bool = flag(False)
    reuse: str = text(HOLD, choices=RULES)


@dataclass(frozen=True)
class BudgetSettings(RouterSettings):
    """Learning-to-Cache at a given cost.

    Attributes:
        budget: budget of the whole trajectory, see `policies.budget`.
        ascent: step of the penalty, per visit of all routers.
        damping: damps the penalty's oscillation around the budget.

    """

    name: str = text("budget", choices=("budget",))
    penalty: float | None = number(None, at_least=0, optional=True, example=3e-4)
    budget: Budget = ruled(BudgetRule(), 0.75)
    ascent: float = number(1.0, above=0)
    damping: float = number(3.0, at_least=0)


@dataclass(frozen=True)
class HarmonicaSettings(RouterSettings):
    """Step-wise denoising training of HarmoniCa (arXiv 2410.01723).

    Attributes:
        error_weights: weights of the evaluations: `sensitivity`, `disabled_once`, `cumulative` or `none`.
        weights_every: steps between two measurements of those weights.
        weight_images: images that they are measured on.

    """

    name: str = text("harmonica", choices=("harmonica",))
    error_weights: str = text("disabled_once", choices=("sensitivity", "disabled_once", "cumulative", "none"))
    weights_every: int = whole(50, at_least=1)
    weight_images: int = whole(8, at_least=1, at_most=10**6)

    def check_together(self) -> None:
        """Refuse extrapolation, which this training does not support."""
        if self.reuse != HOLD:
            raise ValueError(
                f"router=harmonica holds what it reuses, got router.reuse={self.reuse}; say router.reuse=hold"
            )


@dataclass(frozen=True)
class DataSettings(Settings, group="data"):
    """A data set by its name.

    Attributes:
        name: name of the data set.
        batch_size: images of a step, over all processes and accumulated parts together.

    """

    name: str = text("noise")
    batch_size: int = whole(32, at_least=1, at_most=10**6)


@dataclass(frozen=True)
class NoiseSettings(DataSettings):
    """No images: pairs from the sampler's own trajectories.

    Attributes:
        num_trajectories: batches of noise that are visited in turn; None = always new ones.
        store_outputs: keep the cached layer outputs of each pair.

    """

    num_trajectories: int | None = whole(None, at_least=1, at_most=10**6, optional=True, example=64)
    store_outputs: bool = flag(False)


@dataclass(frozen=True)
class LatentsSettings(DataSettings):
    """Latents that `encode_latents` wrote.

    Attributes:
        folder: folder of the latents.
        vae_scale: the scale that the backbone was trained with.
        num_workers: processes that read.

    """

    name: str = text("latents")
    folder: str = text("data/latents")
    vae_scale: float = number(0.18215, above=0)
    num_workers: int = whole(4, at_least=0, at_most=1024)


@dataclass(frozen=True)
class ImagesSettings(LatentsSettings):
    """A folder of images, one sub-folder a class, encoded on the fly.

    Attributes:
        vae: a diffusers name or a local folder.

    """

    name: str = text("imagenet")
    folder: str = text("data/imagenet/train")
    vae: str = text("stabilityai/sd-vae-ft-ema")
    num_workers: int = whole(8, at_least=0, at_most=1024)


ROUTERS: dict[str, type[RouterSettings]] = {
    "l2c": RouterSettings,
    "l2c_summed": RouterSettings,
    "budget": BudgetSettings,
    "harmonica": HarmonicaSettings,
}
DATA: dict[str, type[DataSettings]] = {
    "noise": NoiseSettings,
    "prompts": NoiseSettings,
    "latents": LatentsSettings,
    "imagenet": ImagesSettings,
}


def router_settings(given: Mapping[str, Any]) -> RouterSettings:
    """Return the settings of the kind of router that `name` names.

    Raises:
        ValueError: if the kind is unknown, or a setting is not allowed.

    """
    return ROUTERS[chosen("router", given.get("name", "l2c"), ROUTERS)].of(given)


def data_settings(given: Mapping[str, Any], more: Mapping[str, type[DataSettings]] | None = None) -> DataSettings:
    """Return the settings of the data set that `name` names.

    Args:
        given: values by name.
        more: kinds of settings of other data sets than `DATA`, by name.

    Raises:
        ValueError: if the data set is unknown, or a setting is not allowed.

    """
    kinds = {**DATA, **(more or {})}
    return kinds[chosen("data", given.get("name", "noise"), kinds)].of(given)


@dataclass(frozen=True)
class RouterTraining(Settings):
    """All settings of a run of router training.

    Attributes:
        solver: the trajectory.
        router: the routers and their objective.
        data: the training data.
        trainer: Lightning's Trainer and number of steps.
        logger: loggers of metrics.
        seed: seed of everything that is drawn.
        resume: a checkpoint to continue from, `auto` for the one in the run's folder if any; None = start anew.
        recompute_activations: less memory for about a third more time.
        checkpoint_every_n_steps: steps between two checkpoints.
        heatmap_every_n_steps: steps between two pictures of the routers.

    """

    solver: SolverSettings = field(kw_only=True)
    router: RouterSettings = field(default_factory=RouterSettings, kw_only=True)
    data: DataSettings = field(default_factory=NoiseSettings, kw_only=True)
    trainer: TrainerSettings = field(default_factory=TrainerSettings, kw_only=True)
    logger: LoggerSettings = field(default_factory=LoggerSettings, kw_only=True)
    seed: int = whole(0, at_least=0, at_most=LARGEST_SEED)
    resume: str | None = text(None, optional=True, example="auto")
    recompute_activations: bool = flag(False)
    checkpoint_every_n_steps: int = whole(50, at_least=1)
    heatmap_every_n_steps: int = whole(100, at_least=1)

    def check_together(self) -> None:
        """Refuse groups that are none, and data that the routers cannot be trained on."""
        groups = {
            "solver": SolverSettings,
            "router": RouterSettings,
            "data": DataSettings,
            "trainer": TrainerSettings,
        }
        for name, kind in {**groups, "logger": LoggerSettings}.items():
            instance(name, getattr(self, name), kind)
        from_noise = self.data.name in FROM_NOISE
        if isinstance(self.router, HarmonicaSettings) and not from_noise:
            raise ValueError(
                "router=harmonica trains on the sampler's own trajectories and takes no images, "
                f"got data={self.data.name}; say data=noise"
            )
        limit = self.data.num_trajectories if isinstance(self.data, NoiseSettings) else None
        if limit is not None and self.router.reuse != HOLD:
            raise ValueError(
                f"data.num_trajectories={limit} stores pairs, but with router.reuse={self.router.reuse} they follow "
                "the routers; say data.num_trajectories=null or router.reuse=hold"
            )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result, by their full names; a run is resumed with the same ones.

        Others may change: trainer.max_steps (upwards), how many devices and parts share a batch, what is logged and
        when checkpoints are written.
        """
        groups = {name: getattr(self, name).to_dict() for name in ("solver", "router", "data")}
        groups["data"].pop("num_workers", None)
        flat = {f"{group}.{name}": value for group, entries in groups.items() for name, value in entries.items()}
        return {
            **flat,
            "trainer.precision": self.trainer.precision,
            "trainer.gradient_clip_val": self.trainer.gradient_clip_val,
            "seed": self.seed,
        }
