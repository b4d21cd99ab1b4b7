"""The static cache graph: which layers compute at which evaluation, and what that is valid for.

Pure data. A row has one bit per layer, 1 = compute and 0 = reuse; what stands in for a reused layer is told in
`l2c.graph.predictor`, what makes a graph wrong in `checks`, its JSON form in `file`, its text for people in `text`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from l2c.graph import file, hub, text
from l2c.graph.binding import Binding
from l2c.graph.checks import CHECKS, MAX_SCALE
from l2c.graph.correction_file import CorrectionFile
from l2c.graph.predictor import HOLD, Weights, entry_weights, held_outputs, slopes_of
from l2c.graph.statistics import counted, removed_fraction_of
from l2c.io.atomic import write_text
from l2c.io.bundled import bundled_graph, graph_names
from l2c.io.json_fields import read_text
from l2c.io.names import shown
from l2c.io.numbers import finite_number, whole_number


@dataclass(frozen=True, kw_only=True, repr=False)
class CacheGraph:
    """All rows of one trajectory, and the backbone, solver, timesteps and guidance they are valid for.

    Attributes:
        rows: one row per evaluation, noisiest first; each has one bool per layer, True = compute.
        layers: names of the layers, index `2 b` attention and `2 b + 1` MLP of block b.
        timesteps: t that the backbone is given at each evaluation, strictly falling (or rising, for models that
            count up from noise to image).
        model: name of the backbone.
        solver: name of the solver, or class of a diffusers scheduler.
        routed: indices of the evaluations that may reuse; None = those that do.
        reuse: `hold`, `linear`, `fitted` or `weighted`, what stands in for a reused layer, per evaluation; none = all
            `hold`.
        fitted: per evaluation the slopes of its reused layers, in order, where its reuse is `fitted`; none elsewhere.
        weighted: per evaluation the weights of its reused layers, in order, where its reuse is `weighted`; none
            elsewhere. Each is 1 to 4 numbers that add up to 1, of the layer's past outputs, the last computed first.
        correction: file of scales and shifts of what stands in; None = none.
        fingerprint: digest of the weights that the graph was made for; None = any.
        solver_options: the solver's own settings, `eta` for one.
        guidance: what `cfg_scale` means: `dit`, `uvit`, `cfg` or `embedded`; None = not said.
        cfg_scale: guidance scale that the graph was made under; None = made without, accepts any.
        provenance: method, hyper-parameters, package version.
        measured: figures that the maker lets travel along (MACs, errors); not interpreted.

    Raises:
        ValueError: if the parts contradict each other; the message says what, got and allowed.

    """

    rows: tuple[tuple[bool, ...], ...]
    layers: tuple[str, ...]
    timesteps: tuple[float, ...]
    model: str
    solver: str
    routed: tuple[int, ...] | None = None
    reuse: tuple[str, ...] = ()
    fitted: tuple[tuple[float, ...], ...] = ()
    weighted: tuple[tuple[Weights, ...], ...] = ()
    correction: CorrectionFile | None = None
    fingerprint: str | None = None
    solver_options: Mapping[str, float] = field(default_factory=dict)
    guidance: str | None = None
    cfg_scale: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # bool() each entry: numpy's True is not Python's, and the seam tells True, False and weights apart.
        if any(isinstance(row, str) for row in self.rows):
            raise ValueError("rows must hold bools, got text; CacheGraph.from_json reads rows of 0 and 1 as text")
        rows = tuple(tuple(map(bool, row)) for row in self.rows)
        reusing = tuple(e for e, row in enumerate(rows) if not all(row))
        routed = None if self.routed is None else {whole_number("routed", e) for e in self.routed}
        scale = self.cfg_scale
        for name, value in (
            ("rows", rows),
            ("routed", reusing if routed is None else tuple(sorted(routed))),
            ("reuse", tuple(map(str, self.reuse or (HOLD,) * len(rows)))),
            ("fitted", tuple(tuple(map(float, slopes)) for slopes in self.fitted or ((),) * len(rows))),
            ("weighted", _sets(self.weighted or ((),) * len(rows))),
            ("layers", tuple(map(str, self.layers))),
            ("timesteps", tuple(finite_number("a timestep", t) for t in self.timesteps)),
            ("cfg_scale", scale and finite_number("cfg_scale", scale, low=-MAX_SCALE, high=MAX_SCALE)),
        ):
            object.__setattr__(self, name, value)
        for check in CHECKS:
            check(self)

    @classmethod
    def blank(cls, binding: Binding, **others: Any) -> CacheGraph:
        """Return the graph that computes everything, for what a binding says; `others` are further attributes."""
        rows = ((True,) * len(binding.layers),) * binding.num_evaluations
        return cls(**{**binding.fields, "rows": rows, **others})

    @property
    def binding(self) -> Binding:
        """The binding: what the graph is valid for."""
        return Binding.of_graph(self)

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations of the trajectory."""
        return len(self.rows)

    @property
    def num_layers(self) -> int:
        """Number of layers of the backbone."""
        return len(self.layers)

    @property
    def num_reused(self) -> int:
        """Number of (evaluation, layer) entries that reuse."""
        return sum(row.count(False) for row in self.rows)

    @property
    def removed_fraction(self) -> float:
        """Share of layers reused, over the routed evaluations; 0 where none is routed."""
        assert self.routed is not None
        return self.num_reused / (len(self.routed) * self.num_layers) if self.routed else 0.0

    @property
    def removed_fraction_overall(self) -> float:
        """Share of layers reused, over all evaluations."""
        return self.num_reused / (self.num_evaluations * self.num_layers)

    def removed_fraction_of(self, kind: str) -> float:
        """Return the share of one kind of layer (`attn`, `mlp`) reused in the routed rows."""
        return removed_fraction_of(self, kind)

    @cached_property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """For each evaluation, how many computed outputs of each layer (0..4) are held, because read later."""
        return held_outputs(self.rows, self.weights)

    @cached_property
    def slopes(self) -> tuple[tuple[float, ...], ...]:
        """The slope of each entry: 0 where it is computed, held or `weighted`, that of the line in t for `linear`."""
        return slopes_of(self.rows, self.timesteps, self.reuse, self.fitted)

    @cached_property
    def weights(self) -> tuple[tuple[Weights, ...], ...]:
        """The weights of the past outputs that stand in for each entry, the last one first; none where computed."""
        return entry_weights(self.rows, self.slopes, self.reuse, self.weighted)

    @cached_property
    def keep(self) -> tuple[tuple[bool, ...], ...]:
        """For each evaluation, the layers of which something is held after it."""
        return tuple(tuple(count > 0 for count in row) for row in self.held)

    @property
    def peak_kept(self) -> int:
        """Largest number of layer outputs held between two evaluations."""
        return max(sum(row) for row in self.held)

    @property
    def statistics(self) -> dict[str, Any]:
        """Counts and shares that follow from the rows, and what the maker measured."""
        return {**self.measured, **counted(self)}

    def replace(self, **changes: Any) -> CacheGraph:
        """Return a copy with some attributes changed; pass `routed` along when rows change."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        return text.short(self)

    def summary(self) -> str:
        """Return a few lines for people: what it is for, what it removes, its rows as a picture in text."""
        return text.summary(self)

    def to_json(self) -> str:
        """Return the file's text.

        Raises:
            ValueError: if provenance or measured figures hold what JSON cannot say.

        """
        return file.to_json(self)

    def save(self, path: str | Path) -> None:
        """Write the graph as JSON, its correction beside it; files appear whole or not at all.

        Raises:
            OSError: if the folder cannot be made or written.
            ValueError: if the content cannot be written, or the correction's name belongs to another file.

        """
        self.to_json()  # refuses before anything is written
        graph = self if self.correction is None else self.replace(correction=self.correction.beside(Path(path)))
        write_text(path, graph.to_json())

    @classmethod
    def load(cls, path: str | Path) -> CacheGraph:
        """Read and validate a graph: a file, or a bundled graph by its name.

        Args:
            path: a file, or the name of a bundled graph (`dit_digits_ddim20`).

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, of another format or version, or contradicts itself.

        """
        found = Path(path)
        if not found.exists() and str(path) in graph_names():
            found = bundled_graph(str(path))
        if not found.exists():
            raise FileNotFoundError(
                f"no cache graph at {shown(path, 300)}: neither a file nor a bundled graph "
                f"({', '.join(graph_names())}); make one with l2c train or l2c graph"
            )
        content = read_text(found)
        try:
            return cls.from_json(content, folder=found.parent)
        except ValueError as error:
            raise ValueError(f"{shown(found, 300)}: {error}") from error

    @classmethod
    def from_json(cls, text: str, *, folder: Path = Path()) -> CacheGraph:
        """Read and validate a graph from the file's text; a correction that it names lies in `folder`.

        Raises:
            ValueError: if the text is damaged, of another format or version, or contradicts itself.

        """
        return cls(**file.fields_of(text, folder))

    def save_pretrained(self, folder: str | Path, *, files: Sequence[str | Path] = ()) -> None:
        """Write the graph, a model card and copies of `files` into a folder; see `l2c.graph.hub`."""
        hub.save_pretrained(self, folder, files=files)

    def push_to_hub(
        self, repo: str, *, files: Sequence[str | Path] = (), private: bool = False, token: str | None = None
    ) -> str:
        """Send what `save_pretrained` writes to a Hub repository; return the address; see `l2c.graph.hub`."""
        return hub.push_to_hub(self, repo, files=files, private=private, token=token)

    @classmethod
    def from_pretrained(cls, repo: str | Path, *, revision: str | None = None) -> CacheGraph:
        """Read the graph of a Hub repository, or of a folder that `save_pretrained` wrote; see `l2c.graph.hub`."""
        return hub.from_pretrained(cls.load, repo, revision=revision)


def _sets(weighted: Sequence[Sequence[Sequence[float]]]) -> tuple[tuple[Weights, ...], ...]:
    """Return weights as tuples of Python's floats."""
    return tuple(tuple(tuple(map(float, weights)) for weights in row) for row in weighted)
