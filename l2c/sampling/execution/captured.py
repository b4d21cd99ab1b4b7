"""A whole trajectory as one CUDA graph: captured once, replayed for every batch of the same size."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Run = Callable[..., Tensor]


class CapturedTrajectory:
    """Replay a trajectory with one launch instead of thousands.

    A static cache graph decides nothing while it samples, so that the launches of a trajectory are the same ones
    every time. Buffers belong to the captured graph. A batch of another size is captured anew, and said so once.

    Args:
        run: samples images from tensors, noise (N, C, H, W) first, None where there is nothing to give; it makes the
            same launches at every call.

    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor | None, ...] = ()
        self._warned = False

    def __call__(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """Return the images (N, C, H, W) that `run` gives."""
        with torch.cuda.device(x.device):  # streams and graphs are those of the current device
            return self._replay(x, (x, *others))

    def _replay(self, x: Tensor, inputs: tuple[Tensor | None, ...]) -> Tensor:
        if self._graph is not None and _shapes(inputs) != _shapes(self._inputs):
            if not self._warned:
                before = self._inputs[0]
                assert before is not None
                warnings.warn(
                    f"the trajectory was captured for {len(before)} images and is captured anew for {len(x)}; "
                    "keep to one batch size, and pad the last batch, to save the time",
                    stacklevel=3,
                )
                self._warned = True
            self._graph = None
        if self._graph is None:
            self._capture(inputs)
        assert self._graph is not None
        for buffer, given in zip(self._inputs, inputs, strict=True):
            if buffer is not None and given is not None:
                buffer.copy_(given)
        self._graph.replay()
        return self._images.clone()

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> None:
        self._inputs = tuple(None if given is None else given.clone() for given in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in the first calls, which a capture forbids
            for _ in range(2):
                self._run(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._images = self._run(*self._inputs)
        self._graph = graph


def _shapes(tensors: tuple[Tensor | None, ...]) -> list[torch.Size | None]:
    return [None if tensor is None else tensor.shape for tensor in tensors]


def why_not(x: Tensor, *, offloaded: bool) -> str | None:
    """Return why a trajectory from noise x cannot be captured, or None."""
    if not x.is_cuda:
        return f"the backbone is on {x.device.type}, and only a CUDA device has graphs"
    if offloaded:
        return "the cache is kept on the host"
    return None
