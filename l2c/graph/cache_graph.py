"""The static cache graph: which layers compute at which evaluation, and what that is valid for.

Pure data. A row has one bit per layer, 1 = compute and 0 = reuse; `fields` has the attributes and what follows from
them, `l2c.graph.predictor` the prediction of a reused layer, `checks` what makes a graph wrong, `file` JSON,
`text` the text for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l2c.graph import file, given, hub, text
from l2c.graph.binding import Binding
from l2c.graph.checks import CHECKS, MAX_SCALE
from l2c.graph.correction_file import CorrectionFile
from l2c.graph.fields import GraphFields
from l2c.graph.predictor import HOLD, Weights
from l2c.graph.statistics import removed_fraction_of, statistics_of
from l2c.io.bundled import at_home
from l2c.io.json_fields import parse
from l2c.io.names import chosen, quoted, shown
from l2c.io.numbers import finite_number, whole_number


@dataclass(frozen=True, kw_only=True, repr=False)
class CacheGraph(GraphFields):
    """All rows of one trajectory, and the backbone, solver, timesteps and guidance they are valid for.

    Its attributes are those of `l2c.graph.fields.GraphFields`; here they are checked, read and written.

    Raises:
        ValueError: if the parts contradict each other; the message says what, got and allowed.

    """

    def __post_init__(self) -> None:
        rows = given.decisions(self.rows)
        reusing = tuple(e for e, row in enumerate(rows) if not all(row))
        routed = (
            None if self.routed is None else {whole_number("routed", e) for e in given.each("routed", self.routed)}
        )
        scale, digest = self.cfg_scale, self.fingerprint
        none: tuple[Any, ...] = ((),) * len(rows)
        if not isinstance(self.correction, CorrectionFile | None):
            raise ValueError(f"correction must be a CorrectionFile or None, got {quoted(self.correction)}")
        for name, value in (
            ("rows", rows),
            ("routed", reusing if routed is None else tuple(sorted(routed))),
            ("reuse", tuple(given.text("reuse", how) for how in _or("reuse", self.reuse, (HOLD,) * len(rows)))),
            ("slopes", tuple(given.floats("slopes", row) for row in _or("slopes", self.slopes, none))),
            ("weights", tuple(map(_sets, _or("weights", self.weights, none)))),
            ("layers", tuple(given.text("a layer's name", name) for name in given.each("layers", self.layers))),
            ("timesteps", tuple(finite_number("a timestep", t) for t in given.each("timesteps", self.timesteps))),
            (
                "cfg_scale",
                None if scale is None else finite_number("cfg_scale", scale, low=-MAX_SCALE, high=MAX_SCALE),
            ),
            ("fingerprint", None if digest is None else given.text("fingerprint", digest)),
            ("guidance", None if self.guidance is None else given.text("guidance", self.guidance)),
            *((name, given.text(name, getattr(self, name))) for name in ("model", "solver")),
            ("solver_options", _options(self.solver_options)),
            ("guidance_options", given.plain_table("guidance_options", self.guidance_options)),
            *((name, given.table(name, getattr(self, name))) for name in ("provenance", "measured")),
        ):
            object.__setattr__(self, name, value)
        for check in CHECKS:
            check(self)

    @classmethod
    def blank(cls, binding: Binding, **others: Any) -> CacheGraph:
        """Return the graph that computes everything, for what a binding says; `others` are further attributes."""
        if not isinstance(binding, Binding):
            raise ValueError(f"a blank graph is made of a binding, got {quoted(binding)}; graph.binding is one")
        rows = ((True,) * len(binding.layers),) * binding.num_evaluations
        return cls(**{**binding.fields, "rows": rows, **others})

    @property
    def binding(self) -> Binding:
        """The binding: what the graph is valid for."""
        return Binding.of_graph(self)

    def removed_fraction_of(self, kind: str) -> float:
        """Return the share of one kind of layer (`attn`, `mlp`) reused in the routed rows."""
        return removed_fraction_of(self, kind)

    @property
    def statistics(self) -> dict[str, Any]:
        """Counts and shares that follow from the rows, and what the maker measured."""
        return statistics_of(self)

    def replace(self, **changes: Any) -> CacheGraph:
        """Return a copy with some attributes changed; pass `routed` along when rows change.

        Raises:
            ValueError: if a graph has no such attribute, or the parts contradict each other.

        """
        for name in changes:
            chosen("attribute of a graph", name, self.__dataclass_fields__)
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
        file.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> CacheGraph:
        """Read and validate a graph: a file, or a bundled graph by its name.

        Args:
            path: a file, or the name of a bundled graph (`dit_digits_ddim20`).

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, of another format or version, or contradicts itself.

        """
        return file.load(cls.from_json, path)

    @classmethod
    def from_json(cls, text: str, *, folder: Path = Path()) -> CacheGraph:
        """Read and validate a graph from the file's text; a correction that it names lies in `folder`.

        Raises:
            ValueError: if the text is damaged, of another format or version, or contradicts itself.

        """
        content = parse(given.text("the text of a graph", text))
        graph = cls(**file.fields_of(content, at_home(folder)))
        file.check_content(content)
        return graph

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


def _or(name: str, values: Any, otherwise: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the items of a list; `otherwise` where there are none."""
    return (() if values is None else tuple(given.each(name, values))) or otherwise


def _options(values: Any) -> dict[str, float]:
    """Return a solver's options as Python's floats."""
    options = given.table("solver_options", values)
    return {
        given.text("the name of an option", name): finite_number(f"the option {shown(name)} of the solver", value)
        for name, value in options.items()
    }


def _sets(row: Any) -> tuple[Weights, ...]:
    """Return the weights of an evaluation as tuples of Python's floats."""
    return tuple(given.floats("weights", weights) for weights in given.each("weights", row))
