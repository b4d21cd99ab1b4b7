"""The cached trajectory as one differentiable function of slopes, scales and shifts of reused layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l2c.backbones.layer_cache import LayerCache
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import DIGITS, FITTED, WEIGHTED, combined, counts_before, from_slopes, weights_of
from l2c.sampling.correction import Rows, corrected, reused_entries
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.image_error import squared_errors
from l2c.sampling.sampler import Sampler


def unroll(
    sampler: Sampler,
    graph: CacheGraph,
    noise: Tensor,
    y: Tensor | None,
    slopes: Tensor,
    corrections: tuple[Rows, Rows] | None = None,
    *,
    teach: bool = False,
) -> tuple[Tensor, Tensor]:
    """Follow a graph's trajectory; return its images (N, C, H, W) and, with `teach`, the loss of its outputs.

    With `teach` each evaluation's output is compared with that of a full pass at the same state, and no gradient
    flows from one evaluation to the next; without, the whole trajectory is differentiable and the loss is 0.

    Args:
        sampler: uncached; brings backbone, solver and guidance.
        graph: the cache graph.
        noise: (N, C, H, W), the start.
        y: (N,) labels; None for a backbone without.
        slopes: (R,), of the reused entries in the order of `reused_entries`, read where two outputs are at hand; or
            (R, K - 1), of the outputs before the last, see `start_slopes`.
        corrections: scale and shift, R rows (D,) each; None = none.
        teach: compare each output with that of a full pass, and pass no gradient between evaluations.

    """
    network = GuidedBackbone(sampler.backbone, y, sampler.guidance)
    student = _Student(network, graph, _Reuse(graph, slopes, corrections, detach=teach), teach=teach)
    images = sampler.solver.sample(student, noise)
    return images, noise.new_zeros(()) + sum(student.losses)


class _Student:
    """The cached network as a solver calls it: one evaluation after the other.

    Args:
        network: the backbone under guidance.
        graph: the cache graph.
        reuse: predictions of reused outputs.
        teach: compare each output with that of a full pass, and pass no gradient on; see `unroll`.

    Attributes:
        losses: mean squared error (0-d) of each evaluation that reuses; empty without `teach`.

    """

    def __init__(self, network: GuidedBackbone, graph: CacheGraph, reuse: _Reuse, *, teach: bool) -> None:
        self.network = network
        self.graph = graph
        self.reuse = reuse
        self.teach = teach
        self.losses: list[Tensor] = []
        self._evaluation = 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the guided output (N, C or 2 C, H, W) at the state x (N, C, H, W)."""
        e, row = self._evaluation, self.graph.rows[self._evaluation]
        backbone, y = self.network.backbone, self.network.y
        batch, times = self.network.inputs(x, t)
        output, outputs = backbone.forward_cached(batch, times, y, row, self.reuse.cache(e))
        if self.teach and not all(row):
            with torch.no_grad():
                teacher = backbone(batch, times, y)
            self.losses.append((output.float() - teacher.float()).square().mean())
        self.reuse.keep(row, outputs)
        self._evaluation += 1
        guided = self.network.merge(output, t)
        return guided.detach() if self.teach else guided


class _Reuse:
    """Predictions of reused outputs along a trajectory, differentiable in slopes and corrections.

    Args:
        graph: the cache graph.
        slopes: (R,), see `unroll`.
        corrections: scale and shift, R rows (D,) each; None = none.
        detach: pass no gradient on to the evaluations whose outputs are kept.

    """

    def __init__(
        self, graph: CacheGraph, slopes: Tensor, corrections: tuple[Rows, Rows] | None, *, detach: bool
    ) -> None:
        self.slopes = slopes[:, None] if slopes.ndim == 1 else slopes  # (R, K - 1)
        self.corrections = corrections
        self.detach = detach
        self._index = {entry: i for i, entry in enumerate(reused_entries(graph))}
        self._reused = graph.reused
        self._computed: list[list[Tensor]] = [[] for _ in graph.layers]  # of each layer, newest first

    def cache(self, evaluation: int) -> list[Tensor | None]:
        """Return the prediction for each layer that an evaluation reuses; None for the others."""
        reused = self._reused[evaluation]
        return [self._value(evaluation, layer) if layer in reused else None for layer in range(len(self._computed))]

    def _value(self, evaluation: int, layer: int) -> Tensor:
        i, outputs = self._index[evaluation, layer], self._computed[layer]
        slopes = self.slopes[i, : len(outputs) - 1].to(outputs[0].dtype)
        value = combined(outputs, weights_of(*slopes.unbind()))
        if self.corrections is not None:
            scale, shift = self.corrections
            value = corrected(value, scale[i].to(value.dtype), shift[i].to(value.dtype))
        return value

    def keep(self, row: Sequence[bool], outputs: LayerCache) -> None:
        """Remember the outputs of the layers that a row computes."""
        for layer in (layer for layer, fresh in enumerate(row) if fresh):
            newest = outputs[layer]
            assert newest is not None
            earlier = self._computed[layer][: self.slopes.shape[1]]
            self._computed[layer] = [newest.detach() if self.detach else newest, *earlier]


def image_loss(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over images (N, C, H, W) of the root of their squared error, and the mean squared error.

    With plain squares, a few images of large error would dominate.
    """
    error = squared_errors(images, target, images.dtype)
    return error.clamp_min(1e-12).sqrt().mean(), error.mean().detach()


def start_slopes(graph: CacheGraph) -> Tensor:
    """Return the slopes that a graph has: of its R reused entries (R,), or (R, K - 1) where some are weighted.

    With outputs a, b_1, b_2, ..., the last one first, slope j belongs to b_j: the prediction is `a + sum_j slope_j (a
    - b_j)`. K is the largest number of outputs that an entry reads.
    """
    entries = reused_entries(graph)
    if WEIGHTED not in graph.reuse:
        return torch.tensor([graph.entry_slopes[e][layer] for e, layer in entries])
    weights = [graph.entry_weights[e][layer] for e, layer in entries]
    width = max(1, *(len(of_entry) - 1 for of_entry in weights))
    slopes = torch.zeros(len(entries), width)
    for i, (_, *older) in enumerate(weights):
        slopes[i, : len(older)] = -torch.tensor(older)
    return slopes


def with_slopes(graph: CacheGraph, slopes: Tensor) -> CacheGraph:
    """Return a graph whose reused entries have the slopes (R,) or (R, K - 1), see `start_slopes`."""
    given = iter(slopes.tolist())
    if slopes.ndim == 1:
        fitted = tuple(tuple(round(next(given), DIGITS) for _ in layers) for layers in graph.reused)
        return graph.replace(reuse=(FITTED,) * len(graph.rows), slopes=fitted, weights=())
    weighted_rows = tuple(
        tuple(from_slopes(next(given)[: computed[layer] - 1]) for layer in layers)
        for layers, computed in zip(graph.reused, counts_before(graph.rows), strict=True)
    )
    return graph.replace(reuse=(WEIGHTED,) * len(graph.rows), slopes=(), weights=weighted_rows)
