"""What a cache graph holds, and what follows from it; `cache_graph` checks it, reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from l2c.graph.correction_file import CorrectionFile
from l2c.graph.layer_names import ends_in_output
from l2c.graph.predictor import Weights, entry_weights, held_outputs, reused_layers, slopes_of

Entry: TypeAlias = tuple[int, int]  # an evaluation and a layer


@dataclass(frozen=True, kw_only=True, repr=False)
class GraphFields:
    """All rows of one trajectory, and the backbone, solver, timesteps and guidance they are valid for; unchecked.

    Attributes:
        rows: one row per evaluation, noisiest first; each has one bool per layer, True = compute.
        layers: names of the layers, index `2 b` attention and `2 b + 1` MLP of block b; the last one may be `output`,
            what the whole network returns. An evaluation that reuses it runs no layer, and its row has no 1.
        timesteps: t that the backbone is given at each evaluation, strictly falling (or rising, for models that
            count up from noise to image).
        model: name of the backbone.
        solver: name of the solver, or class of a diffusers scheduler.
        routed: indices of the evaluations that may reuse; None = those that do.
        reuse: predictor of reused layers per evaluation: `hold`, `linear`, `fitted` or `weighted`; none = all `hold`.
        slopes: per evaluation the slopes of its reused layers, in order, where its reuse is `fitted`; none elsewhere.
        weights: per evaluation the weights of its reused layers, in order, where its reuse is `weighted`; none
            elsewhere. Each is 1 to 4 numbers that add up to 1, of the layer's past outputs, the last computed first.
        correction: file of scales and shifts of the reused entries; None = none.
        fingerprint: digest of the weights that the graph was made for; None = any.
        solver_options: the solver's own settings, `eta` for one.
        guidance: what `cfg_scale` means, one of `binding.GUIDANCES`, see `diffusion.guidance.Guidance`; None = not
            said.
        cfg_scale: guidance scale that the graph was made under; None = made without, accepts any.
        guidance_options: further arguments of a pipeline's call that say how it is guided (`guidance_rescale`, the
            scale of a second denoiser), by name: numbers, texts, bools, None, or lists of these; none = any.
        provenance: method, hyper-parameters, package version.
        measured: figures measured when the graph was made (MACs, errors); not interpreted.

    """

    rows: tuple[tuple[bool, ...], ...]
    layers: tuple[str, ...]
    timesteps: tuple[float, ...]
    model: str
    solver: str
    routed: tuple[int, ...] | None = None
    reuse: tuple[str, ...] = ()
    slopes: tuple[tuple[float, ...], ...] = ()
    weights: tuple[tuple[Weights, ...], ...] = ()
    correction: CorrectionFile | None = None
    fingerprint: str | None = None
    solver_options: Mapping[str, float] = field(default_factory=dict)
    guidance: str | None = None
    cfg_scale: float | None = None
    guidance_options: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

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
        """Number of (evaluation, layer) entries that are not computed."""
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

    @cached_property
    def reused(self) -> tuple[tuple[int, ...], ...]:
        """For each evaluation the layers that reuse, in order: the whole output alone where it is reused."""
        whole = ends_in_output(self.layers)
        return tuple(reused_layers(row, whole=whole) for row in self.rows)

    @cached_property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """For each evaluation, how many computed outputs of each layer (0..4) are held, because read later."""
        return held_outputs(self.rows, self.entry_weights)

    @cached_property
    def entry_slopes(self) -> tuple[tuple[float, ...], ...]:
        """The slope of each entry: 0 where it is computed, held or `weighted`, that of the line in t for `linear`."""
        return slopes_of(self.rows, self.timesteps, self.reuse, self.slopes, reused=self.reused)

    @cached_property
    def entry_weights(self) -> tuple[tuple[Weights, ...], ...]:
        """The weights of the past outputs that predict each entry, the last one first; none where it reads none."""
        return entry_weights(self.rows, self.entry_slopes, self.reuse, self.weights, reused=self.reused)

    @cached_property
    def keep(self) -> tuple[tuple[bool, ...], ...]:
        """For each evaluation, the layers of which something is held after it."""
        return tuple(tuple(count > 0 for count in row) for row in self.held)

    @property
    def peak_kept(self) -> int:
        """Largest number of layer outputs held between two evaluations."""
        return max(sum(row) for row in self.held)
