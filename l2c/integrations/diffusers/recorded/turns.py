"""Which of a pipeline's denoisers makes which evaluations of a trajectory, by the module that is called at each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from l2c.backbones.backbone import class_name
from l2c.backbones.digest import known_digest
from l2c.backbones.forwards import replaced
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.collection import CacheGraphs
from l2c.graph.resampling import nearest
from l2c.graph.selection import with_evaluations
from l2c.integrations.diffusers.adapters import effective_weights
from l2c.integrations.diffusers.denoisers import denoisers_of
from l2c.integrations.diffusers.recorded.answers import Answers
from l2c.integrations.diffusers.recorded.steps import RecordedError, Unset, ended
from l2c.integrations.diffusers.timesteps import arguments_of, timestep_of


@dataclass(frozen=True)
class Turns:
    """The denoisers of a trajectory.

    Attributes:
        models: the denoisers by their names in the pipeline.
        called: for each timestep at which they were seen, the names of those called. Where one is called at each
            timestep they take turns (experts); where all are called at each, they are guidance branches.
        given: names of the arguments that each is given at its first call.
        scales: guidance scales of those that have another than the first one.

    """

    models: Mapping[str, nn.Module]
    called: Mapping[float, tuple[str, ...]] = field(default_factory=dict)
    given: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def experts(self) -> bool:
        """Whether each evaluation is made by one of several."""
        return len(self.models) > 1 and all(len(names) == 1 for names in self.called.values())

    def at(self, t: float) -> nn.Module:
        """Return the model of the evaluation at t, that of the nearest timestep seen; of branches the first one."""
        return self.models[self._first_at(t)]

    def scale_at(self, t: float) -> float | None:
        """Return the guidance scale that the model of the evaluation at t has of its own."""
        return self.scales.get(self._first_at(t))

    def _first_at(self, t: float) -> str:
        times = list(self.called)
        return self.called[times[nearest(times, t)]][0] if times else next(iter(self.models))

    def joined(self, other: Turns) -> Turns:
        """Return these and those of another number of steps."""
        return Turns(self.models, {**self.called, **other.called}, self.given)


def graphs_of(graph: CacheGraph, backbone: Any) -> CacheGraph | CacheGraphs:
    """Return a graph of a whole trajectory as a pipeline needs it: for several denoisers, one for each.

    Experts get their own evaluations, the first of which computes everything; guidance branches get all of them.

    Args:
        graph: made with a backbone.
        backbone: that of the pipeline, see `pipeline_backbone`.

    """
    turns: Turns = backbone.turns
    if len(turns.models) == 1:
        return graph
    every = range(graph.num_evaluations)
    parts: dict[str, CacheGraph] = {}
    for name, model in turns.models.items():
        chosen = [e for e in every if turns.at(graph.timesteps[e]) is model] if turns.experts else every
        own = (
            known_digest(model, effective_weights(model)) if model is not backbone.first_model else graph.fingerprint
        )
        whole = len(chosen) == len(every)
        parts[name] = graph.replace(fingerprint=own) if whole else with_evaluations(graph, chosen, fingerprint=own)
    return CacheGraphs(parts)


@torch.no_grad()
def turns_of(pipe: Any, settings: Mapping[str, Any], count: int, answers: Answers) -> Turns:
    """Return which denoisers a pipeline calls at which timesteps; it is run once, answers being drawn by chance.

    Args:
        pipe: the pipeline.
        settings: of its call.
        count: number of evaluations, at whose end the call is ended.
        answers: in the place of predictions; no model runs twice for them.

    """
    models = denoisers_of(pipe)
    if len(models) == 1:
        return Turns(models)
    called: dict[float, dict[str, None]] = {}
    given: dict[str, tuple[str, ...]] = {}
    unset, step = Unset(pipe), pipe.scheduler.step

    def look(name: str) -> Any:
        answer = answers.of(models[name])

        def call(forward: Any, *args: Any, **kwargs: Any) -> Any:
            if not unset:
                called.setdefault(timestep_of(models[name], args, kwargs), {})[name] = None
                own = arguments_of(models[name], args, kwargs)
                given.setdefault(name, tuple(key for key, value in own.items() if value is not None))
            return answer(forward, *args, **kwargs)

        return call

    def stepped(*args: Any, **kwargs: Any) -> Any:
        if len(called) == count:
            raise RecordedError
        return step(*args, **kwargs)

    pipe.scheduler.step = stepped
    try:
        with torch.random.fork_rng(), replaced({model: look(name) for name, model in models.items()}):
            ended(pipe, settings)
    finally:
        del pipe.scheduler.step
    return Turns(models, {t: tuple(names) for t, names in called.items()}, given)


def check_turns(turns: Turns, pipeline: str) -> None:
    """Refuse turns that one graph of layers cannot follow.

    Args:
        turns: of the denoisers of a pipeline.
        pipeline: its class.

    Raises:
        ValueError: if a denoiser is not called, several take turns in no order that a graph can follow, or they are
            of different classes.

    """
    if len(turns.models) == 1:
        return
    seen = {name for names in turns.called.values() for name in names}
    idle = [name for name in turns.models if name not in seen]
    if idle:
        raise ValueError(
            f"{pipeline} calls its {idle[0]} at none of {len(turns.called)} steps; take more, or take it out of the "
            f"pipeline (pipe.{idle[0]} = None)"
        )
    mixed = {len(names) for names in turns.called.values()} - {len(turns.models)}
    if mixed and not turns.experts:
        raise ValueError(
            f"{pipeline} calls several of its denoisers ({', '.join(turns.models)}) at some steps and one at others, "
            "which no graph of a whole trajectory follows; calibrate each on a pipeline of its own"
        )
    kinds = list(dict.fromkeys(class_name(model) for model in turns.models.values()))
    if len(kinds) > 1:
        raise ValueError(
            f"{pipeline} has denoisers of the classes {' and '.join(kinds)} in one trajectory, which have no layers "
            "in common; calibrate each on a pipeline of its own"
        )
