"""The cached trajectory as one differentiable function of what stands in for reused layers."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import weighted, weights_of
from l2c.sampling.correction import Rows, corrected, reused_entries
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
        graph: what is reused when.
        noise: (N, C, H, W), the start.
        y: (N,) labels; None for a backbone without.
        slopes: (R,), of the reused entries in the order of `reused_entries`; read where two outputs are at hand.
        corrections: scale and shift, R rows (D,) each; None = none.
        teach: see above.

    """
    backbone, guidance = sampler.backbone, sampler.guidance
    if guidance.active and y is not None:
        y = torch.cat([y, torch.full_like(y, backbone.conventions.null_label or 0)])  # (2 N,)
    index = {entry: i for i, entry in enumerate(reused_entries(graph))}
    computed: list[list[Tensor]] = [[] for _ in graph.layers]  # newest first
    loss = noise.new_zeros(())
    dtype = next(backbone.parameters()).dtype
    trajectory = sampler.solver.trajectory(noise)
    request = next(trajectory)
    while True:
        e, row = request.index, graph.rows[request.index]
        x = (torch.cat([request.x, request.x]) if guidance.active else request.x).to(dtype)
        times = torch.full((len(x),), request.t, device=x.device)
        cache: list[Tensor | None] = [None] * len(row)
        for layer in (layer for layer, fresh in enumerate(row) if not fresh):
            i, (value, *earlier) = index[e, layer], computed[layer]
            if earlier:
                value = weighted(value, earlier[0], weights_of(slopes[i])[0].to(value.dtype))
            if corrections is not None:
                scale, shift = corrections
                value = corrected(value, scale[i].to(value.dtype), shift[i].to(value.dtype))
            cache[layer] = value
        output, outputs = backbone.forward_cached(x, times, y, row, cache)
        if teach and not all(row):
            with torch.no_grad():
                teacher = backbone(x, times, y)
            loss = loss + (output.float() - teacher.float()).square().mean()
        for layer in (layer for layer, fresh in enumerate(row) if fresh):
            newest = outputs[layer]
            assert newest is not None
            computed[layer] = [newest.detach() if teach else newest, *computed[layer][:1]]
        output = output.float()
        guided = guidance.combine(*output.chunk(2)) if guidance.active else output
        try:
            request = trajectory.send(guided.detach() if teach else guided)
        except StopIteration as stop:
            return stop.value, loss


def image_loss(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over images (N, C, H, W) of the root of their squared error, and the mean squared error.

    Of plain squares a few images of large error would be all that counts.
    """
    error = (images - reference).square().flatten(1).mean(dim=1)  # (N,)
    return error.clamp_min(1e-12).sqrt().mean(), error.mean().detach()


def with_slopes(graph: CacheGraph, slopes: Tensor) -> CacheGraph:
    """Return a graph whose reused entries have the slopes (R,)."""
    given = iter(slopes.tolist())
    fitted = tuple(tuple(round(next(given), 6) for fresh in row if not fresh) for row in graph.rows)
    return graph.replace(reuse=("fitted",) * len(graph.rows), fitted=fitted)
