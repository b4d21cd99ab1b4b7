"""Runs trajectories: blocks compiled or not, replayed as one CUDA graph or not; explains lack of memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from l2c.backbones.backbone import Backbone
from l2c.backbones.layer_cache import BlockCall, call_block
from l2c.backbones.wrap import WrappedModule
from l2c.diffusion import Solver
from l2c.diffusion.solver import draw_noise
from l2c.graph.cache_graph import CacheGraph
from l2c.io.locks import OwnLock
from l2c.io.memory import memory_explained, out_of_memory
from l2c.io.seeds import ImageNoise
from l2c.sampling.execution.captured import CapturedTrajectory, why_not
from l2c.sampling.execution.compiled import CompiledBlocks, short_reason

Trajectory = Callable[..., Tensor]


class Runner:
    """Run a sampler's trajectories as requested; an impossible option is reported once and left out.

    Attributes:
        call: runs a block, see `Pass`.
        captured: whether trajectories are replayed as a CUDA graph, from the next one on at the latest.

    """

    def __init__(self) -> None:
        self.call: BlockCall = call_block
        self.captured = False
        self._replay: CapturedTrajectory | None = None
        self._places: list[int] = []  # in memory, of the weights that a replay reads
        self._lock = OwnLock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_replay": None}  # its buffers are those of this process and of one trajectory

    def __deepcopy__(self, memo: dict[int, Any]) -> Runner:
        twin = Runner()
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()})
        return twin

    @property
    def compiled(self) -> bool:
        """Whether the blocks run compiled."""
        return isinstance(self.call, CompiledBlocks) and not self.call.failed

    def compile(
        self,
        backbone: Backbone,
        graph: CacheGraph | None,
        count: int,
        *,
        backend: str | Callable[..., Any],
        progress: bool,
    ) -> None:
        """Compile a backbone's blocks for `count` inputs at a time, both branches of guidance counted."""
        if any(isinstance(module, WrappedModule) for module in backbone.modules()):
            _warn(
                "the blocks run uncompiled: those of a wrapped module are its own; compile its layers themselves, "
                "layer.compile(), and they stay compiled where they compute"
            )
            return
        parameter = next(backbone.parameters())
        x = torch.zeros(count, *backbone.input_shape, device=parameter.device, dtype=backbone.dtype)
        y = torch.zeros(count, dtype=torch.long, device=parameter.device) if backbone.num_labels else None
        blocks = CompiledBlocks(backend)
        try:
            blocks.warm_up(backbone, graph, x, y, progress=progress)
        except Exception as error:  # compilers and the tools that they call fail in ways of their own
            if out_of_memory(error):  # which would happen uncompiled, too
                raise
            _warn(f"the blocks run uncompiled, because compiling them failed: {short_reason(error)}")
            return
        self.blocks_by(blocks)

    def blocks_by(self, call: BlockCall) -> None:
        """Run blocks by a given function."""
        self.call = call
        self._replay = None  # what was captured runs them the old way

    def capture(self) -> None:
        """Replay trajectories as one CUDA graph from the next one on."""
        self.captured = True
        self._replay = None

    def run(
        self,
        trajectory: Trajectory,
        solver: Solver,
        x: Tensor,
        y: Tensor | None,
        generator: ImageNoise | None,
        *,
        weights: Callable[[], Iterable[Tensor]],
        offloaded: bool,
        progress: bool,
    ) -> Tensor:
        """Return the images (N, C, H, W) of noise x (N, C, H, W) and labels y (N,).

        Args:
            trajectory: `trajectory(x, y, generator=..., on_evaluation=...)` returns them.
            solver: solver of the trajectory.
            x: noise.
            y: labels; None for a backbone without.
            generator: the source of what a stochastic solver adds.
            weights: returns the network's weights; a replay reads them where they lay when it was captured.
            offloaded: whether the cache is kept on the host.
            progress: show a bar over the evaluations.

        """
        alone = self.captured or self.call is not call_block  # compiled code and captured buffers serve one at a time
        with self._lock if alone else nullcontext():
            if self.captured and self._replayable(x, offloaded):
                self._keep_replay_of([weight.data_ptr() for weight in weights()])
                return self._replayed(trajectory, solver, x, y, generator)
            return self._followed(trajectory, solver, x, y, generator, progress=progress)

    def _keep_replay_of(self, places: list[int]) -> None:
        """Drop what was captured while the weights lay elsewhere: it would read memory that is no longer theirs."""
        if places != self._places:
            self._places, self._replay = places, None

    @staticmethod
    def _followed(
        trajectory: Trajectory,
        solver: Solver,
        x: Tensor,
        y: Tensor | None,
        generator: ImageNoise | None,
        *,
        progress: bool,
    ) -> Tensor:
        if not progress:  # a hidden bar takes a lock too, which a fork leaves locked
            return trajectory(x, y, generator=generator)
        with tqdm(total=solver.num_evaluations, desc="sampling", leave=False) as bar:
            return trajectory(x, y, generator=generator, on_evaluation=lambda e: bar.update())

    def _replayable(self, x: Tensor, offloaded: bool) -> bool:
        obstacle = why_not(x, offloaded=offloaded)
        if obstacle is not None:
            self.captured = False
            _warn(f"the trajectory is not captured as a CUDA graph: {obstacle}")
        return obstacle is None

    def _replayed(
        self, trajectory: Trajectory, solver: Solver, x: Tensor, y: Tensor | None, generator: ImageNoise | None
    ) -> Tensor:
        def with_noise_of_steps(x: Tensor, y: Tensor | None, drawn: Tensor | None) -> Tensor:
            steps = iter(() if drawn is None else drawn)  # (steps, N, C, H, W)
            return trajectory(x, y, generator=lambda shape: next(steps))

        drawn = None
        if solver.stochastic:
            drawn = torch.stack([draw_noise(x, generator) for _ in range(solver.num_evaluations)])
        if self._replay is None:
            self._replay = CapturedTrajectory(with_noise_of_steps)
        try:
            return self._replay(x, y, drawn)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self.captured, self._replay = False, None
            reason = short_reason(error.__cause__ if isinstance(error.__cause__, RuntimeError) else error)
            _warn(f"the trajectory is not captured as a CUDA graph, because capturing failed: {reason}")
            return with_noise_of_steps(x, y, drawn)


def cache_explained(num_images: int, cache_bytes: int) -> AbstractContextManager[None]:
    """Say what the cache of some images needs when memory runs out."""
    return memory_explained(
        lambda: (
            f"out of memory with {num_images} images; the graph's cache needs {cache_bytes} bytes of it: take fewer "
            "images at a time, cache_dtype='bf16' (half of the cache), cache_device='cpu' (none of it on the GPU), "
            "or precision='bf16'"
        )
    )


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)
