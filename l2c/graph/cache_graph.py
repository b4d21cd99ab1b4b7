"""The static cache graph: which layers compute at which evaluation, and what that is valid for.

Pure data. A row has one bit per layer, 1 = compute and 0 = reuse; what stands in for a reused layer is told in
`l2c.graph.predictor`. The JSON form is described by `cache_graph.schema.json` beside this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from l2c.graph.correction_file import CorrectionFile
from l2c.graph.hub import OnHub
from l2c.graph.layer_names import kind_of
from l2c.graph.predictor import FITTED, HOLD, LINEAR, REUSES, held_outputs, slopes_of
from l2c.io.atomic import replacing
from l2c.io.json_fields import items, member, numbers, refuse_constant

FORMAT = "l2c-cache-graph"
VERSION = 1
FIELDS = {
    *("format", "version", "model", "sampler", "routed", "reuse", "slopes", "rows", "correction"),
    *("provenance", "statistics"),
}
KINDS = {"attn": ("attn",), "mlp": ("mlp", "ff", "proj_out")}  # as ours and diffusers' layers are called


@dataclass(frozen=True, kw_only=True)
class CacheGraph(OnHub):
    """All rows of one trajectory, and the backbone, solver, timesteps and guidance they are valid for.

    Attributes:
        rows: one row per evaluation, noisiest first; each has one bool per layer, True = compute.
        layers: names of the layers, index `2 b` attention and `2 b + 1` MLP of block b.
        timesteps: t that the backbone is given at each evaluation, strictly decreasing.
        model: name of the backbone.
        solver: name of the solver.
        routed: indices of the evaluations that may reuse; None = those that do.
        reuse: `hold`, `linear` or `fitted`, what stands in for a reused layer, per evaluation; none = all `hold`.
        fitted: per evaluation the slopes of its reused layers, in order, where its reuse is `fitted`; none elsewhere.
        correction: file of scales and shifts of what stands in; None = none.
        fingerprint: digest of the weights that the graph was made for; None = any.
        solver_options: the solver's own settings, `eta` for one.
        guidance: what `cfg_scale` means, `dit` or `uvit`.
        cfg_scale: guidance scale that the graph was made under; None = made without, accepts any.
        provenance: method, hyper-parameters, package version.
        measured: figures that its maker wants to travel along (MACs, errors); not interpreted.

    Raises:
        ValueError: the parts contradict each other; the message says what, got and allowed.

    """

    rows: tuple[tuple[bool, ...], ...]
    layers: tuple[str, ...]
    timesteps: tuple[float, ...]
    model: str
    solver: str
    routed: tuple[int, ...] | None = None
    reuse: tuple[str, ...] = ()
    fitted: tuple[tuple[float, ...], ...] = ()
    correction: CorrectionFile | None = None
    fingerprint: str | None = None
    solver_options: Mapping[str, float] = field(default_factory=dict)
    guidance: str | None = None
    cfg_scale: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # bool() each entry: numpy's True is not Python's, and the seam tells True, False and weights apart.
        if self.cfg_scale is not None and not math.isfinite(self.cfg_scale):
            raise ValueError(f"cfg_scale must be a finite number or None, got {self.cfg_scale}")
        if any(isinstance(row, str) for row in self.rows):
            raise ValueError("rows must hold bools, got text; CacheGraph.from_json reads rows of 0 and 1 as text")
        rows = tuple(tuple(bool(bit) for bit in row) for row in self.rows)
        reusing = tuple(e for e, row in enumerate(rows) if not all(row))
        routed = reusing if self.routed is None else tuple(sorted({int(e) for e in self.routed}))
        for name, value in (
            ("rows", rows),
            ("routed", routed),
            ("reuse", tuple(map(str, self.reuse or (HOLD,) * len(rows)))),
            ("fitted", tuple(tuple(map(float, slopes)) for slopes in self.fitted or ((),) * len(rows))),
            ("layers", tuple(map(str, self.layers))),
            ("timesteps", tuple(map(float, self.timesteps))),
        ):
            object.__setattr__(self, name, value)
        self._check(reusing)

    def _check(self, reusing: tuple[int, ...]) -> None:
        if not self.rows or not self.layers:
            raise ValueError(f"a cache graph needs rows and layers, got {len(self.rows)} and {len(self.layers)}")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError("layer names must differ from each other; name each layer of the backbone once")
        for e, row in enumerate(self.rows):
            if len(row) != len(self.layers):
                raise ValueError(
                    f"row {e} has {len(row)} entries, but the graph has {len(self.layers)} layers; "
                    "every row needs one entry per layer"
                )
        if not all(self.rows[0]):
            first = self.layers[self.rows[0].index(False)]
            raise ValueError(
                f"the first row reuses layer {first}, but nothing is kept before evaluation 0; "
                "the first row must compute every layer"
            )
        if len(self.timesteps) != len(self.rows):
            raise ValueError(
                f"the graph has {len(self.rows)} rows but {len(self.timesteps)} timesteps; give one per row"
            )
        if not all(math.isfinite(t) for t in self.timesteps):
            raise ValueError(f"timesteps must be finite numbers, got {list(self.timesteps)}")
        rising = self.timesteps[-1] > self.timesteps[0]  # of models that count from noise 0 to image 1
        for before, after in zip(self.timesteps, self.timesteps[1:], strict=False):
            if not (before < after if rising else before > after):
                raise ValueError(
                    f"timesteps must decrease from noise to image, got {after:g} after {before:g}; "
                    "row 0 belongs to the noisiest evaluation"
                )
        if len(self.reuse) != len(self.rows):
            raise ValueError(
                f"reuse has {len(self.reuse)} entries, but the graph has {len(self.rows)} rows; give one per row"
            )
        for e, reuse in enumerate(self.reuse):
            if reuse not in REUSES:
                raise ValueError(f"reuse of evaluation {e} is {reuse!r}, must be {' or '.join(REUSES)}")
        if len(self.fitted) != len(self.rows):
            raise ValueError(f"slopes has {len(self.fitted)} entries, but the graph has {len(self.rows)} rows")
        for e, (row, slopes) in enumerate(zip(self.rows, self.fitted, strict=True)):
            reused = len(row) - sum(row)
            wanted = reused if self.reuse[e] == FITTED else 0
            if len(slopes) != wanted or not all(map(math.isfinite, slopes)):
                raise ValueError(
                    f"evaluation {e} reuses {reused} layers by {self.reuse[e]} and needs {wanted} finite slopes, got "
                    f"{list(slopes)}; give one per reused layer where reuse is {FITTED}, none elsewhere"
                )
        assert self.routed is not None
        outside = [e for e in self.routed if not 0 < e < len(self.rows)]
        if outside:
            raise ValueError(
                f"evaluation {outside[0]} cannot be routed in a graph of {len(self.rows)} evaluations; "
                f"routed evaluations lie in 1..{len(self.rows) - 1}"
            )
        unrouted = [e for e in reusing if e not in self.routed]
        if unrouted:
            raise ValueError(
                f"row {unrouted[0]} reuses layers, but evaluation {unrouted[0]} is not among the routed ones "
                f"{list(self.routed)}; add it there or let the row compute everything"
            )

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
        return sum(not bit for row in self.rows for bit in row)

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
        assert self.routed is not None
        chosen = [i for i, name in enumerate(self.layers) if kind_of(name).startswith(KINDS[kind])]
        total = len(self.routed) * len(chosen)
        return sum(not self.rows[e][i] for e in self.routed for i in chosen) / total if total else 0.0

    @cached_property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """For each evaluation, how many computed outputs of each layer (0, 1, 2) are held, because read later."""
        return held_outputs(self.rows, self.slopes)

    @cached_property
    def slopes(self) -> tuple[tuple[float, ...], ...]:
        """The slope of each entry: 0 where the layer is computed or held, that of the line in t for `linear`."""
        return slopes_of(self.rows, self.timesteps, self.reuse, self.fitted)

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
        assert self.routed is not None
        counted = {
            "num_evaluations": self.num_evaluations,
            "num_routed": len(self.routed),
            "num_layers": self.num_layers,
            "num_reused": self.num_reused,
            "removed_fraction": round(self.removed_fraction, 6),
            "removed_fraction_attention": round(self.removed_fraction_of("attn"), 6),
            "removed_fraction_mlp": round(self.removed_fraction_of("mlp"), 6),
            "removed_fraction_overall": round(self.removed_fraction_overall, 6),
            "peak_kept_outputs": self.peak_kept,
        }
        return {**self.measured, **counted}

    def replace(self, **changes: Any) -> CacheGraph:
        """Return a copy with some attributes changed; pass `routed` along when rows change."""
        return replace(self, **changes)

    def summary(self) -> str:
        """Return a few lines for people: what it is for, what it removes, its rows as a picture in text."""
        assert self.routed is not None
        guidance = "any guidance" if self.cfg_scale is None else f"guidance {self.guidance} {self.cfg_scale:g}"
        lines = [
            f"cache graph for {self.model}: {self.solver}, {self.num_evaluations} evaluations, {guidance}",
            f"{self.num_reused} of {self.num_evaluations * self.num_layers} layers reused: "
            f"{100 * self.removed_fraction:.2f} % of the {len(self.routed)} routed evaluations "
            f"(attention {100 * self.removed_fraction_of('attn'):.2f} %, "
            f"MLP {100 * self.removed_fraction_of('mlp'):.2f} %), "
            f"{100 * self.removed_fraction_overall:.2f} % of all; "
            f"at most {self.peak_kept} outputs held"
            + ("" if self.correction is None else f"; corrected by {self.correction.path.name}"),
        ]
        for e, (t, row) in enumerate(zip(self.timesteps, self.rows, strict=True)):
            mark = ("routed" if e in self.routed else "full") + (
                "" if self.reuse[e] == HOLD else f", {self.reuse[e]}"
            )
            lines.append(f"{e:4d}  t {t:8.2f}  {''.join('#' if bit else '.' for bit in row)}  {mark}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the file's text."""
        assert self.routed is not None
        content = {
            "format": FORMAT,
            "version": VERSION,
            "model": {"name": self.model, "fingerprint": self.fingerprint, "layers": list(self.layers)},
            "sampler": {
                "solver": self.solver,
                "options": dict(self.solver_options),
                "num_evaluations": self.num_evaluations,
                "timesteps": list(self.timesteps),
                "guidance": {"mode": self.guidance, "scale": self.cfg_scale},
            },
            "routed": list(self.routed),
            "rows": ["".join("1" if bit else "0" for bit in row) for row in self.rows],
            **({"reuse": list(self.reuse)} if {LINEAR, FITTED} & set(self.reuse) else {}),
            **({"slopes": list(map(list, self.fitted))} if FITTED in self.reuse else {}),
            **({"correction": self.correction.to_json()} if self.correction is not None else {}),
            "provenance": dict(self.provenance),
            "statistics": self.statistics,
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the graph as JSON, its correction beside it under the same name; files appear whole or not at all.

        Raises:
            OSError: the folder cannot be made or written.

        """
        graph = self if self.correction is None else self.replace(correction=self.correction.beside(Path(path)))
        with replacing(path) as temporary:
            temporary.write_text(graph.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> CacheGraph:
        """Read and validate a graph.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, of another format or version, or contradicts itself.

        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"no cache graph at {path}; train one with `python train_router.py`, which writes cache_graph.json"
            ) from error
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise ValueError(f"{path} is not a text file in UTF-8; give the cache_graph.json itself") from error
        try:
            return cls.from_json(text, folder=Path(path).parent)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str, *, folder: Path = Path()) -> CacheGraph:
        """Read and validate a graph from the file's text; a correction that it names lies in `folder`.

        Raises:
            ValueError: the text is damaged, of another format or version, or contradicts itself.

        """
        try:
            content = json.loads(text, parse_constant=refuse_constant)
        except RecursionError as error:
            raise ValueError("not a cache graph: its JSON is nested too deeply; export the graph again") from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}); "
                "the file may be cut short: export or copy it again"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            got = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"not a cache graph: format is {got!r}, must be {FORMAT!r}")
        if content.get("version") != VERSION or isinstance(content["version"], bool):
            raise ValueError(
                f"cache graph version {content.get('version')!r} is unknown, this package reads version {VERSION}; "
                "update l2c or export the graph again"
            )
        unknown = sorted(set(content) - FIELDS)
        if unknown:
            raise ValueError(f"the field {unknown[0]} is unknown; the fields are {', '.join(sorted(FIELDS))}")
        sampler = member(content, "sampler", dict)
        model = member(content, "model", dict, "model")
        guidance = member(sampler, "guidance", dict, "sampler.guidance")
        options = member(sampler, "options", dict, "sampler.options")
        for name in options:
            member(options, name, (int, float), f"sampler.options.{name}")
        rows = member(content, "rows", list)
        for e, row in enumerate(rows):
            if not isinstance(row, str) or set(row) - {"0", "1"}:
                raise ValueError(f"row {e} must be a string of 0 (reuse) and 1 (compute), got {row!r}")
        graph = cls(
            rows=tuple(tuple(bit == "1" for bit in row) for row in rows),
            layers=tuple(items(model, "layers", str, "model.layers")),
            timesteps=tuple(numbers(items(sampler, "timesteps", (int, float), "sampler.timesteps"))),
            model=member(model, "name", str, "model.name"),
            solver=member(sampler, "solver", str, "sampler.solver"),
            routed=tuple(items(content, "routed", int, "routed")) if "routed" in content else None,
            reuse=tuple(items(content, "reuse", str, "reuse")) if "reuse" in content else (),
            fitted=_slopes(content) if "slopes" in content else (),
            fingerprint=member(model, "fingerprint", (str, type(None)), "model.fingerprint"),
            solver_options=options,
            guidance=member(guidance, "mode", (str, type(None)), "sampler.guidance.mode"),
            cfg_scale=member(guidance, "scale", (int, float, type(None)), "sampler.guidance.scale"),
            provenance=member(content, "provenance", dict),
        )
        if "correction" in content:
            named = CorrectionFile.from_json(member(content, "correction", dict), folder)
            graph = graph.replace(correction=named)
        declared = member(sampler, "num_evaluations", int, "sampler.num_evaluations")
        if declared != graph.num_evaluations:
            raise ValueError(f"sampler.num_evaluations is {declared}, but there are {graph.num_evaluations} rows")
        statistics = member(content, "statistics", dict)
        return graph.replace(measured={k: v for k, v in statistics.items() if k not in graph.statistics})


def _slopes(content: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
    """Return the field `slopes`: a list of numbers per evaluation."""
    rows = items(content, "slopes", list, "slopes")
    return tuple(
        tuple(numbers(items({"slopes": row}, "slopes", (int, float), f"slopes[{e}]"))) for e, row in enumerate(rows)
    )
