"""What was measured of a backbone under a sampler, once and kept in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from l2c.calibration import calibration_file as file
from l2c.calibration.cost import Cost
from l2c.calibration.grid import Grid, finer, oldest_age
from l2c.calibration.other_times import ResponsesOnGrid, carry
from l2c.diffusion import Schedule, Solver
from l2c.graph.binding import Binding
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.given import names, takes
from l2c.graph.layer_names import WHOLE_OUTPUT
from l2c.io.bundled import at_home
from l2c.io.json_fields import as_form
from l2c.io.memory import memory_explained
from l2c.io.names import chosen, quoted, shown
from l2c.io.numbers import truth_value
from l2c.io.tensors import opened, write_tensors

Kind = TypeVar("Kind", bound="Measurements")
MAX_BYTES = 2**32
LOWER = "take half as many, which need a quarter of it, or a calibration of fewer trajectories or probes"
OF_TIMES = ("solver", "solver_options", "timesteps")
HOW = {
    "layer_change": "run `l2c calibrate` and give the file that it writes",
    "block_change": "run `l2c calibrate` and give the file that it writes",
    **dict.fromkeys(
        ("responses", "responses_ahead"), "run `l2c calibrate measure=[responses]` and give the file that it writes"
    ),
}


def solver_or_grid(name: str, value: Any) -> Solver | Grid:
    """Return the evaluations of a graph; refuse what says none."""
    if not isinstance(value, (Solver, Grid)):
        raise ValueError(f"{name} must be a Solver, or its evaluations as a Grid, got {quoted(value)}")
    return value


@dataclass(frozen=True, repr=False)
class Measurements:
    """Measured tensors and what they are valid for.

    Attributes:
        tensors: `layer_change` (K, E, L) and `block_change` (K, E, B): mean relative L1 change against the output
            1..K evaluations before; `responses` (E, L, A, M) and `responses_ahead` (E, L, B, M), and those of the
            whole output, (E, 1, A or B, M) and those to outputs between evaluations: see `measure_both_ways`.
        binding: model, weights, solver, times and guidance.
        settings: settings of the measurement: seed, number of trajectories.
        grid: the evaluations as responses see them, see `Grid`; None = the responses belong to these times alone.
        schedule: the noise schedule of the weights; None where a pipeline's scheduler has one of its own.
        cost: MACs of the backbone; None = not known without the model.
        corrections: true errors beside predicted ones, see `file.CORRECTION`, from the largest budget.
        output_corrections: the same of graphs of the whole output.
        both_corrections: the same of graphs of layers and the whole output.
        carried_from: number of evaluations of the grid that responses were carried from; None = measured here.
        finer: evaluations for each of those that responses were carried from, in the same stretch of time.

    Raises:
        ValueError: if a part is of another type or out of range, or two contradict each other.

    """

    tensors: Mapping[str, Tensor]
    binding: Binding
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid | None = None
    schedule: Schedule | None = None
    cost: Cost | None = None
    corrections: tuple[Mapping[str, float], ...] = ()
    output_corrections: tuple[Mapping[str, float], ...] = ()
    both_corrections: tuple[Mapping[str, float], ...] = ()
    carried_from: int | None = None
    finer: float = 1.0

    def __post_init__(self) -> None:
        file.check_content(
            self.tensors,
            binding=self.binding,
            settings=self.settings,
            grid=self.grid,
            cost=self.cost,
            corrections={name: getattr(self, name) for name in file.CORRECTIONS},
            whole=self.carried_from is None,
        )

    def __repr__(self) -> str:
        binding, count = self.binding, self.settings.get("num_trajectories", "unknown")
        held = ", ".join(self.tensors) or "nothing"
        return (
            f"<{type(self).__name__} of {shown(binding.model)}: {shown(binding.solver)}, {binding.num_evaluations} "
            f"evaluations x {len(binding.layers)} layers; {held}; trajectories: {shown(count)}>"
        )

    @property
    def head(self) -> dict[str, Any]:
        """The binding of the calibration, by field name."""
        return self.binding.head

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name.

        Raises:
            ValueError: if there is no such tensor, or it was not measured; the message says how to measure it.

        """
        chosen("tensor of a calibration", name, file.DIMENSIONS)
        if name not in self.tensors and self.carried_from is not None:
            raise ValueError(
                f"the calibration was made for {self.carried_from} other evaluations, and {name} is known at those "
                "alone (responses are carried to other times); run l2c calibrate with the same solver and number of "
                "evaluations as the graph"
            )
        if name not in self.tensors:
            raise ValueError(
                f"the calibration holds {', '.join(self.tensors) or 'nothing'} but no {name}; {HOW[name]}"
            )
        return self.tensors[name]

    @takes(graph=CacheGraph, any_times=truth_value)
    def check(self, graph: CacheGraph, *, any_times: bool = False) -> None:
        """Refuse a calibration of another model or sampler than a graph is to be made for.

        Args:
            graph: the graph to be made.
            any_times: accept another solver and other times.

        Raises:
            ValueError: if model or sampler differ; the message says in what.

        """
        for what, wanted in graph.binding.head.items():
            got = self.head.get(what)
            if what == "guidance_options" and not (got and wanted):  # none = any
                continue
            if got != wanted and not (any_times and what in OF_TIMES):
                between = f"{_short(got)}, but the graph is to be made for {_short(wanted)}"
                raise ValueError(
                    f"the calibration was made for {what.replace('_', ' ')} {between}; run l2c calibrate with the "
                    "same model and solver, or take the calibration that belongs to them"
                )

    def of_output(self: Kind) -> Kind | None:
        """Return the part that has the whole output as its one layer; None where that was not measured."""
        prefix = file.OF_OUTPUT
        tensors = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        if not tensors:
            return None
        return replace(
            self,
            tensors=tensors,
            binding=replace(self.binding, layers=(WHOLE_OUTPUT,)),
            cost=self.cost and self.cost.of_output,
            corrections=self.output_corrections,
            output_corrections=(),
            both_corrections=(),
        )

    @takes(layers=names)
    def part(self: Kind, layers: str | Sequence[str]) -> Kind:
        """Return the one of `parts` that has these layers, `("output",)` for one; the first where none has."""
        return next((part for part in self.parts if part.binding.layers == tuple(layers)), self.parts[0])

    @cached_property
    def parts(self: Kind) -> tuple[Kind, ...]:
        """Calibrations of one kind of layers each: the layers' and, where it was measured, the whole output's."""
        whole = self.of_output()
        if whole is None:
            return (self,)
        alone = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(file.OF_OUTPUT)}
        return replace(self, tensors=alone, output_corrections=(), both_corrections=()), whole

    @takes(graph=CacheGraph, solver=solver_or_grid)
    def at(self: Kind, graph: CacheGraph, solver: Solver | Grid) -> Kind:
        """Return the calibration for the times of a graph: itself, or with responses carried there.

        Args:
            graph: the graph to be made; gives model, weights, guidance and times.
            solver: solver of the graph, or its evaluations.

        Raises:
            ValueError: if model, weights or guidance differ, or the responses cannot be carried; the message says.

        """
        same_times = all(self.head[what] == graph.binding.head[what] for what in OF_TIMES)
        if same_times or self.grid is None or "responses_ahead" not in self.tensors:
            self.check(graph)
            return self
        self.check(graph, any_times=True)
        grid = solver if isinstance(solver, Grid) else Grid.of(solver)
        measured = ResponsesOnGrid.of(self.grid, self.tensors)
        count = len(grid.timesteps)
        with memory_explained(lambda: f"out of memory while carrying responses to {count} evaluations; {LOWER}"):
            responses = carry(measured, grid, max_age=oldest_age(count))
        return replace(
            self,
            tensors={"responses": torch.from_numpy(responses)},
            binding=graph.binding,
            grid=grid,
            carried_from=len(self.grid.timesteps),
            finer=finer(grid, self.grid),
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with a JSON header; it appears whole or not at all.

        Raises:
            OSError: if the file cannot be written.
            ValueError: if JSON cannot hold the settings, or responses were carried here from other times.

        """
        if self.carried_from is not None:
            count = self.binding.num_evaluations
            raise ValueError(
                f"responses that were carried from {self.carried_from} to {count} evaluations are kept in no file; "
                f"save the calibration of {self.carried_from}, whose graph(..., num_steps={count}) carries them again"
            )
        header = file.header_of(
            tensors=self.tensors,
            binding=self.binding,
            settings=self.settings,
            grid=self.grid,
            schedule=self.schedule,
            cost=self.cost,
            corrections=self.corrections,
            output_corrections=self.output_corrections,
            both_corrections=self.both_corrections,
        )
        write_tensors(path, self.tensors, {"l2c": header})

    @classmethod
    def load(cls: type[Kind], path: str | Path) -> Kind:
        """Read and validate a file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds no calibration, is of another version, or contradicts itself.

        """
        name, path = shown(path, 300), at_home(path)
        if not path.is_file():
            raise FileNotFoundError(f"no calibration at {name}; l2c calibrate writes them")
        with as_form(path, file.FORMAT):
            return cls._read(path)

    @classmethod
    def _read(cls: type[Kind], path: str | Path) -> Kind:
        name = shown(path, 300)
        if (size := Path(path).stat().st_size) > MAX_BYTES:
            raise ValueError(f"{name} has {size} bytes, allowed are {MAX_BYTES}; give what l2c calibrate wrote")
        with opened(path, what="a calibration of l2c", again="give what l2c calibrate wrote") as found:
            header = (found.metadata() or {})["l2c"]
            tensors = {key: found.get_tensor(key) for key in found.keys()}  # noqa: SIM118 - not a dict
        try:
            calibration = cls(tensors, **file.fields_of(header))
            file.check_digest(header, tensors)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return calibration


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} evaluations from t = {value[0]:g} to {value[-1]:g}"
    text = shown(value, 200)
    return text if len(text) < 40 else f"{text[:19]}..."
