"""Calibrations: measurements on seeded trajectories, kept with their settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from l2c.calibration.changes import measure_changes
from l2c.calibration.cost import count_macs
from l2c.calibration.forward_responses import measure_forward
from l2c.calibration.grid import Grid, oldest_age
from l2c.calibration.measurements import Kind
from l2c.calibration.responses import measure_both_ways
from l2c.diffusion import SOLVERS, Solver
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.binding import binding_of
from l2c.sampling.sampler import Sampler, seeded_noise

CHANGES, RESPONSES = "changes", "responses"
GRADIENT, FORWARD = "gradient", "forward"
METHODS = (GRADIENT, FORWARD)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    CHANGES: {"max_age": 3},
    RESPONSES: {"method": GRADIENT, "num_probes": 8, "max_age": None, "group": 1},
}
log = logging.getLogger(__name__)


def measure(
    kind: type[Kind],
    sampler: Sampler,
    *,
    what: Sequence[str] = (RESPONSES,),
    num_trajectories: int = 64,
    seed: int = 7,
    batch_size: int = 8,
    changes: Mapping[str, Any] | None = None,
    responses: Mapping[str, Any] | None = None,
) -> Kind:
    """Return the calibration of an uncached sampler, with all settings that it was measured with.

    Args:
        kind: class of the calibration.
        sampler: uncached; brings solver, guidance and backbone.
        what: `changes` and/or `responses`.
        num_trajectories: number of trajectories; trajectory i has label i modulo the number of labels.
        seed: seed of noises and directions.
        batch_size: trajectories at a time; memory grows with it.
        changes: arguments of `measure_changes` that differ from `DEFAULTS`.
        responses: `method` (`gradient` or `forward`) and arguments of `measure_both_ways` or `measure_forward` that
            differ from `DEFAULTS`; `max_age` None = `oldest_age` of the solver.

    Raises:
        ValueError: if an argument is not allowed, or responses are asked for and the solver adds noise of its own or,
            with `gradient`, solver or model pass no gradient on.

    """
    backbone, solver = sampler.backbone, sampler.solver
    given = {CHANGES: changes or {}, RESPONSES: responses or {}}
    how = {name: {**DEFAULTS[name], **given[name]} for name in what}
    if RESPONSES in how:
        how[RESPONSES] = _checked(how[RESPONSES], solver)
    labels = labels_in_turn(backbone.num_labels, num_trajectories)
    start = labels, seeded_noise(backbone.input_shape, seed, num_trajectories)
    tensors: dict[str, Tensor] = {}
    if CHANGES in how:
        tensors |= measure_changes(sampler, *start, batch_size=batch_size, **how[CHANGES])
    if RESPONSES in how:
        arguments = {"batch_size": batch_size, **how[RESPONSES]}
        if arguments.pop("method") == FORWARD:
            tensors["responses"], tensors["responses_ahead"] = measure_forward(sampler, *start, **arguments)
        else:
            tensors |= measure_both_ways(sampler, *start, seed=seed, **arguments)
    return kind(
        tensors,
        binding_of(backbone, solver, weights_bound=True, guidance=sampler.guidance),
        {
            "seed": seed,
            "num_trajectories": num_trajectories,
            "batch_size": batch_size,
            "measure": list(what),
            **how,
        },
        grid=_grid(solver) if RESPONSES in how else None,
        schedule=solver.schedule if solver.name in SOLVERS else None,
        cost=count_macs(backbone),
    )


def _checked(given: Mapping[str, Any], solver: Solver) -> dict[str, Any]:
    """Return settings of responses, all of them known."""
    found = dict(given)
    if found["method"] not in METHODS:
        raise ValueError(f"responses.method must be one of {', '.join(METHODS)}, got {found['method']!r}")
    if found["max_age"] is None:
        found["max_age"] = oldest_age(solver.num_evaluations)
    if found["method"] == GRADIENT and found.pop("group") != 1:
        raise ValueError("responses.group is for responses.method=forward; the gradient way measures every layer")
    return found


def _grid(solver: Solver) -> Grid | None:
    """Return the evaluations of a solver; None, with a warning, if responses cannot be carried from them."""
    try:
        return Grid.of(solver)
    except ValueError as error:
        log.warning("graphs can be made for these times only: %s", error)
        return None
