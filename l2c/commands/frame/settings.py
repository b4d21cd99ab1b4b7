"""The settings of every command, checked before anything is loaded.

A command has settings of its own, at the top of its configuration, and groups (`router.penalty`). Groups that a
library function takes are defined beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from l2c.calibration.settings import Changes, Responses
from l2c.commands.frame.benchmark_settings import Benchmark, BenchmarkDiffusers, BenchmarkScale, BenchmarkTraining
from l2c.commands.frame.command_settings import (
    Calibrate,
    CommandSettings,
    Compare,
    EncodeLatents,
    Evaluate,
    ImportRouter,
    MakeGraph,
    ModelSettings,
    PipelineSettings,
    Sample,
    SampleMany,
    TrainBackbone,
    TrainClassifier,
    TrainRouter,
    TrainScaleShift,
)
from l2c.evaluation.method_settings import check_method
from l2c.io.memory import remedies
from l2c.io.names import as_text, near_names
from l2c.io.settings import Settings
from l2c.policies.settings import check_options, check_values
from l2c.sampling.solver_settings import PartialSolverSettings, SolverSettings
from l2c.testbeds.settings import PIXEL_SETTINGS
from l2c.training.routers.settings import DataSettings, RouterTraining, data_settings, router_settings
from l2c.training.settings import LoggerSettings, TrainerSettings

Group = Callable[[Mapping[str, Any]], Any]


def model_settings(given: Mapping[str, Any]) -> Settings:
    """Return the settings of a preset or of a pipeline."""
    return (PipelineSettings if "pipeline" in given else ModelSettings).of(given)


def policy_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the group `policy`; return it."""
    options = dict(given)
    name = options.pop("name", None)
    check_options(str(name), options)
    check_values(str(name), options)
    return dict(given)


def _trainer(given: Mapping[str, Any]) -> TrainerSettings:
    return TrainerSettings.of(given)


def _data(given: Mapping[str, Any]) -> DataSettings:
    return data_settings(given, PIXEL_SETTINGS)


_DRAWING: dict[str, Group] = {
    "model": model_settings,
    "solver": PartialSolverSettings.of,
    "trainer": _trainer,
    "router": router_settings,
    "data": _data,
}
_MEASURING: dict[str, Group] = {"model": model_settings, "solver": SolverSettings.of}
SETTINGS_OF: dict[str, tuple[type[CommandSettings], dict[str, Group]]] = {
    "train_router": (
        TrainRouter,
        {
            "model": model_settings,
            "solver": SolverSettings.of,
            "router": router_settings,
            "data": _data,
            "trainer": _trainer,
            "logger": LoggerSettings.of,
        },
    ),
    "train_scale_shift": (TrainScaleShift, {"model": model_settings, "solver": PartialSolverSettings.of}),
    "sample": (Sample, {"model": model_settings, "solver": PartialSolverSettings.of}),
    "sample_many": (SampleMany, _DRAWING),
    "evaluate": (Evaluate, _DRAWING),
    "compare": (Compare, _MEASURING),
    "calibrate": (
        Calibrate,
        {**_MEASURING, "policy": policy_settings, "changes": Changes.of, "responses": Responses.of},
    ),
    "make_graph": (MakeGraph, {**_MEASURING, "policy": policy_settings}),
    "benchmark": (Benchmark, {"model": model_settings}),
    "encode_latents": (EncodeLatents, {}),
    "import_router": (ImportRouter, _MEASURING),
    "train_backbone": (TrainBackbone, {"model": model_settings}),
    "train_classifier": (TrainClassifier, {}),
    "benchmark_diffusers": (BenchmarkDiffusers, {}),
    "benchmark_scale": (BenchmarkScale, {}),
    "benchmark_training": (BenchmarkTraining, {"model": model_settings}),
}


@dataclass(frozen=True)
class Checked:
    """The settings of a command.

    Attributes:
        top: those at the top.
        groups: the groups that are there, by name.
        content: everything as plain values.

    """

    top: CommandSettings
    groups: dict[str, Any]
    content: dict[str, Any]


def checked(command: str, cfg: DictConfig | Mapping[str, Any]) -> Checked:
    """Check the whole configuration of a command.

    Args:
        command: its name, that of its file in configs/.
        cfg: the composed configuration.

    Raises:
        ValueError: if a setting is unknown, of another type or out of range; one sentence.

    """
    settings, groups = SETTINGS_OF[command]
    content = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    assert isinstance(content, dict)
    given = {str(name): value for name, value in content.items() if name != "hydra"}
    made = {}
    for name, make in groups.items():
        group = given.pop(name, None)
        if group is None:
            continue
        if not isinstance(group, Mapping):
            raise ValueError(f"{name} must be a group of settings, got {group!r}; say {name}=NAME or {name}.SETTING=")
        made[name] = make(group)
    for name in given:
        _known(name, settings, groups)
    top = settings.of(given)
    if isinstance(top, Compare):
        _check_methods(given.get("methods"), top.measured_to)
    if command == "train_router":
        router_training(top, made)
    return Checked(top, made, {str(k): v for k, v in content.items()})


def _known(name: str, settings: type[CommandSettings], groups: Mapping[str, Group]) -> None:
    known = [*(field.name for field in fields(settings)), *groups]
    if name not in known:
        raise ValueError(f"unknown setting {name}; {near_names(name, known)}")


def unknown_setting(command: str, name: str, beside: Mapping[str, Any]) -> str | None:
    """Return the sentence that a command has no setting of a name; None if any name is allowed there, as in tables.

    Args:
        command: its name, that of its file in configs/.
        name: the setting's full name, `router.penalty`.
        beside: the other settings of its group.

    """
    settings, groups = SETTINGS_OF[command]
    group, _, own = name.rpartition(".")
    if name in groups:
        return f"no {name} is chosen yet; say {name}=NAME, and its settings beside it"
    try:
        if not group:
            _known(name, settings, groups)
        elif group == "policy":
            check_options(str(beside.get("name")), {own: None})
        elif group in groups:
            groups[group]({own: None, **beside})  # the first name is looked at first
    except ValueError as error:
        if group == "policy" or str(error).startswith("unknown setting"):  # else of a value beside it
            return str(error)
    return None


def _check_methods(given: Any, measured_to: str) -> None:
    """Check the methods that are compared."""
    methods = given or {}
    if not isinstance(methods, Mapping):
        raise ValueError(f"methods must be a mapping from names to options, got {methods!r}")
    for method, options in methods.items():
        if options is False:
            continue
        if options is not None and not isinstance(options, Mapping):
            raise ValueError(
                f"methods.{method} must be options, null for none or false to leave it out, got {options!r}"
            )
        check_method(str(method), options or {}, measured_to=measured_to)


def router_training(top: CommandSettings, groups: Mapping[str, Any]) -> RouterTraining:
    """Return the settings of `train_routers`."""
    assert isinstance(top, TrainRouter)
    return RouterTraining(
        **groups_of(groups),
        seed=top.seed,
        resume=top.resume,
        recompute_activations=top.recompute_activations,
        checkpoint_every_n_steps=top.checkpoint_every_n_steps,
        heatmap_every_n_steps=top.heatmap_every_n_steps,
    )


def groups_of(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups without the model."""
    return {name: group for name, group in groups.items() if name != "model"}


def memory_sentence(command: str, cfg: DictConfig) -> str:
    """Say what a command was doing when memory ran out, and what lowers it."""
    settings = SETTINGS_OF[command][0]
    now = {name: OmegaConf.select(cfg, name) for name in settings.LOWERS if "=" not in name}
    lowers = (
        f"a smaller {name} (now {as_text(now[name])})" if name in now else name
        for name in settings.LOWERS
        if name not in now or now[name] not in (None, 1)
    )
    return f"out of memory while {settings.DOING}; {remedies(*lowers)}"
