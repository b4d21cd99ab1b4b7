"""A whole trajectory as one CUDA graph: captured once, replayed for every batch of the same size."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Run = Callable[[Tensor, "Tensor | None"], Tensor]


class CapturedTrajectory:
    """Replay a trajectory with one launch instead of thousands.

    A static cache graph decides nothing while it samples, so that the launches of a trajectory are the same ones
    every time. Buffers belong to the captured graph. A batch of another size is captured anew, and said so once.

    Args:
        run: samples images from noise x (N, C, H, W) and labels y (N,); the same launches at every call.

    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warned = False

    def __call__(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the images (N, C, H, W) that `run` gives."""
        if self._graph is not None and self._x.shape != x.shape:
            if not self._warned:
                warnings.warn(
                    f"the captured trajectory is for {len(self._x)} images and is captured anew for {len(x)}; "
                    "keep to one batch size, and pad the last batch, to save the time",
                    stacklevel=3,
                )
                self._warned = True
            self._graph = None
        if self._graph is None:
            self._capture(x, y)
        assert self._graph is not None
        self._x.copy_(x)
        if y is not None and self._y is not None:
            self._y.copy_(y)
        self._graph.replay()
        return self._images.clone()

    def _capture(self, x: Tensor, y: Tensor | None) -> None:
        self._x, self._y = x.clone(), None if y is None else y.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in the first calls, which a capture forbids
            for _ in range(2):
                self._run(self._x, self._y)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._images = self._run(self._x, self._y)
        self._graph = graph


def why_not(x: Tensor, *, stochastic: bool, offloaded: bool) -> str | None:
    """Return why a trajectory from noise x cannot be captured, or None."""
    if not x.is_cuda:
        return f"the backbone is on {x.device.type}, and only a CUDA device has graphs"
    if stochastic:
        return "the solver draws noise at every step on the host"
    if offloaded:
        return "the cache is kept on the host"
    return None
