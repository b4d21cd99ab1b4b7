"""Calibrations: measurements on seeded trajectories, kept with their settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2c.backbones.whole_output import check_one_kind
from l2c.calibration.changes import measure_changes
from l2c.calibration.cost import count_macs
from l2c.calibration.forward_responses import measure_forward
from l2c.calibration.grid import Grid, oldest_age
from l2c.calibration.measurements import Kind
from l2c.calibration.responses import check_gradients, measure_both_ways
from l2c.calibration.settings import CHANGES, FORWARD, GRADIENT, GROUPS, RESPONSES, WHAT
from l2c.diffusion import SOLVERS, Solver
from l2c.graph.given import table
from l2c.io.names import near_keywords
from l2c.io.numbers import AT_ONCE, whole_number
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import Sampler, seeded_noise

log = logging.getLogger(__name__)


@near_keywords()
@torch.inference_mode(False)  # where a server has it on, no gradient would pass
def measure(
    kind: type[Kind],
    sampler: Sampler,
    *,
    what: Sequence[str] | str = (RESPONSES,),
    num_trajectories: int = 64,
    seed: int = 7,
    first_trajectory: int = 0,
    batch_size: int = 8,
    changes: Mapping[str, Any] | None = None,
    responses: Mapping[str, Any] | None = None,
) -> Kind:
    """Return the calibration of an uncached sampler, with all settings that it was measured with.

    Args:
        kind: class of the calibration.
        sampler: uncached; brings solver, guidance and backbone.
        what: `changes` and/or `responses`, a list or one of them.
        num_trajectories: number of trajectories; trajectory i has label i modulo the number of labels.
        seed: seed of noises and directions.
        first_trajectory: number of the first trajectory among those of the seed; of parts of one calibration these
            follow on each other.
        batch_size: trajectories at a time; memory grows with it.
        changes: those of `settings.Changes` that differ from the defaults.
        responses: those of `settings.Responses` that do.

    Raises:
        ValueError: if an argument is not allowed, or responses are asked for and the solver adds noise of its own or,
            with `gradient`, solver or model pass no gradient on.

    """
    check_sampler(sampler)
    backbone, solver = sampler.backbone, sampler.solver
    how = _settings(what, {CHANGES: changes, RESPONSES: responses}, solver)
    _check_probes(how, math.prod(backbone.input_shape))
    given = {"num_trajectories": num_trajectories, "batch_size": batch_size}
    sizes = {name: whole_number(name, value, low=1, high=AT_ONCE) for name, value in given.items()}
    first = sizes["first_trajectory"] = whole_number("first_trajectory", first_trajectory, low=0, high=AT_ONCE)
    labels = labels_in_turn(backbone.num_labels, sizes["num_trajectories"], first=first)
    start = labels, seeded_noise(backbone.input_shape, seed, sizes["num_trajectories"], first=first)
    if RESPONSES in how and how[RESPONSES]["method"] == GRADIENT:
        check_gradients(sampler)
    cost = count_macs(backbone)  # before what is measured: it warns of layers that are none
    tensors: dict[str, Tensor] = {}
    if CHANGES in how:
        tensors |= measure_changes(sampler, *start, batch_size=sizes["batch_size"], **how[CHANGES])
    if RESPONSES in how:
        arguments = {"batch_size": sizes["batch_size"], **how[RESPONSES]}
        if arguments.pop("method") == FORWARD:
            tensors["responses"], tensors["responses_ahead"] = measure_forward(sampler, *start, **arguments)
        else:
            tensors |= measure_both_ways(sampler, *start, seed=seed, first=first, **arguments)
    return kind(
        tensors,
        binding_of(backbone, solver, weights_bound=True, guidance=sampler.guidance),
        {"seed": seed, **sizes, "measure": list(how), **how},
        grid=_grid(solver) if RESPONSES in how else None,
        schedule=solver.schedule if solver.name in SOLVERS else None,
        cost=cost,
    )


def check_sampler(sampler: Sampler) -> None:
    """Refuse what is no uncached sampler.

    Raises:
        ValueError: if it is none, or its backbone has layers and its whole output.

    """
    if not isinstance(sampler, Sampler):
        raise ValueError(f"a calibration is measured on an l2c.Sampler, got {type(sampler).__name__}")
    if sampler.graph is not None:
        raise ValueError(
            "a calibration is measured on an uncached sampler, got one with a cache graph; make it without graph=, "
            f"by solver={sampler.solver.name!r} and num_evaluations={sampler.solver.num_evaluations}"
        )
    check_one_kind(sampler.backbone)


def _settings(what: Any, given: Mapping[str, Any], solver: Solver) -> dict[str, dict[str, Any]]:
    """Return the settings of each kind that is measured, those that were not given included."""
    WHAT.check("what", what)
    how = {name: GROUPS[name].of({} if own is None else table(name, own)).to_dict() for name, own in given.items()}
    responses = how[RESPONSES]
    if responses["max_age"] is None:
        responses["max_age"] = oldest_age(solver.num_evaluations)
    del responses["group" if responses["method"] == GRADIENT else "between"]
    return {name: how[name] for name in ([what] if isinstance(what, str) else what)}


def _check_probes(how: Mapping[str, Mapping[str, Any]], numbers: int) -> None:
    """Refuse more directions of a trajectory than its image has numbers, since there are no more."""
    probes = how.get(RESPONSES, {}).get("num_probes", 0)
    if probes > numbers:
        raise ValueError(
            f"responses.num_probes must be at most {numbers}, the numbers that an image has, got {probes}"
        )


def _grid(solver: Solver) -> Grid | None:
    """Return the evaluations of a solver; None, with a warning, if responses cannot be carried from them."""
    reason: object = f"what lies between {solver.name} and the network is known at its own times alone"
    try:
        if not solver.own_times:
            return Grid.of(solver)
    except ValueError as error:
        reason = error
    log.warning("graphs can be made for these times only: %s", reason)
    return None
