"""The executor: a backbone, a graph and guidance as one callable for a solver; owns the cache of one trajectory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from l2c.backbones.backbone import Backbone
from l2c.backbones.layer_cache import BlockCall, Pass, call_block
from l2c.backbones.parts import in_order
from l2c.diffusion import Guidance
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import combined
from l2c.io.memory import out_of_memory
from l2c.io.names import shown
from l2c.sampling.binding import tolerance_of
from l2c.sampling.conditions import Conditions
from l2c.sampling.correction import Correction
from l2c.sampling.execution.compiled import short_reason
from l2c.sampling.guided import GuidedBackbone
from l2c.sampling.lifetimes import SUM, BlockStep, Lifetimes, Source
from l2c.sampling.store import LayerStore


class Denoiser:
    """Answer a solver's evaluations in order, reusing what the graph says; make a new one per trajectory.

    Nothing is decided here: what each block computes, reads, stores and frees was worked out from the graph.

    Args:
        backbone: the frozen network.
        y: (N,) conditional labels on the backbone's device; None for a backbone without labels.
        guidance: how conditional and unconditional outputs are merged; both run as one batch of 2 N, or apart
            where the backbone says so (`Backbone.parts`).
        graph: the cache graph; None computes everything and keeps nothing.
        timesteps: t of all evaluations, noisiest first, so that what depends on t alone is worked out for many at
            once; None = for each as it comes.
        lifetimes: those of the graph, where they are at hand already.
        correction: likewise.
        store: store of the outputs; None = as they are.
        call: runs a block, see `Pass`.

    """

    def __init__(
        self,
        backbone: Backbone,
        y: Tensor | None,
        guidance: Guidance,
        graph: CacheGraph | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        lifetimes: Lifetimes | None = None,
        correction: Correction | None = None,
        store: LayerStore | None = None,
        call: BlockCall = call_block,
    ) -> None:
        self.backbone = backbone
        self._network = GuidedBackbone(backbone, y, guidance)
        if graph is not None and lifetimes is None:
            lifetimes = lifetimes_for(backbone, graph)
        self._timesteps = timesteps
        self._conditions: Conditions | None = None
        if graph is not None and correction is None:
            correction = Correction.of(graph)
        first = store or LayerStore()
        self._parts = backbone.parts(self._network.y)
        stores = [first, *(first.another() for _ in (self._parts or ())[1:])]
        self._passes = [_ScheduledPass(lifetimes, store, call, correction) for store in stores]
        self._evaluation = 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the output (N, C or 2 C, H, W), in 32 bits, for the state x (N, C, H, W) at timestep t.

        Raises:
            ValueError: if the evaluation that comes next is at another time, or all have been made.

        """
        batch = self._network.batch(x)
        with _failure_explained(self.backbone):
            output = self._output(batch, t)
        self._evaluation += 1
        return self._network.merge(output, t)

    def _output(self, batch: Tensor, t: float) -> Tensor:
        """Return the network's output for inputs (N or 2 N, C, H, W) at timestep t."""
        condition = self._condition(len(batch), t)
        for layers in self._passes:
            layers.begin(self._evaluation)
        if self._parts is None:
            return self.backbone.run(batch, condition, self._passes[0])
        return in_order(
            self._parts,
            [
                self.backbone.run(batch[rows], tuple(part[rows] for part in condition), layers)
                for rows, layers in zip(self._parts, self._passes, strict=True)
            ],
        )

    def _condition(self, count: int, t: float) -> tuple[Tensor, ...]:
        if self._timesteps is None:
            return Conditions(self.backbone, self._network.y, [t], count).at(0)
        if self._evaluation >= len(self._timesteps):
            raise ValueError(
                f"all {len(self._timesteps)} evaluations of this trajectory have been made; call denoiser(labels) "
                "again for the next one"
            )
        due = self._timesteps[self._evaluation]
        if abs(float(t) - due) > tolerance_of(self._timesteps):
            raise ValueError(
                f"evaluation {self._evaluation} of this trajectory is at t = {due:g}, got {float(t):g}; go through "
                "sampler.timesteps in order"
            )
        if self._conditions is None:
            self._conditions = Conditions(self.backbone, self._network.y, self._timesteps, count)
        return self._conditions.at(self._evaluation)

    @property
    def y(self) -> Tensor | None:
        """Labels (N,) as the network is given them, (2 N,) with guidance; None for a backbone without labels."""
        return self._network.y

    @property
    def cached_bytes(self) -> int:
        """Memory that the cache holds now, in bytes."""
        return sum(layers.store.nbytes for layers in self._passes)


def lifetimes_for(backbone: Backbone, graph: CacheGraph) -> Lifetimes:
    """Return a graph's lifetimes on a backbone."""
    return Lifetimes.of(graph, sums=not backbone.gated, layers_per_block=backbone.layers_per_block)


class _ScheduledPass(Pass):
    """The passes of a trajectory, one after the other, by the steps of its lifetimes."""

    def __init__(
        self, lifetimes: Lifetimes | None, store: LayerStore, call: BlockCall, correction: Correction | None
    ) -> None:
        super().__init__(call)
        self.store = store
        self.store.clear()  # what a trajectory that was broken off left
        self._lifetimes = lifetimes
        self._correction = correction
        self._steps: tuple[BlockStep, ...] = ()
        self._whole: BlockStep | None = None

    def begin(self, evaluation: int) -> None:
        """Start an evaluation."""
        if self._lifetimes is not None:
            self._steps = self._lifetimes.steps[evaluation]
            self._whole = self._lifetimes.whole[evaluation] if self._lifetimes.whole else None

    def run(self, index: int, block: nn.Module, *inputs: Any) -> Tensor:
        """Run block `index` on its inputs, the tokens x (N, T, D) first; return x after it."""
        if not self._steps:
            return self._outputs(block, *inputs, (True, True), (None, None))[0]
        if index >= len(self._steps):
            raise ValueError(
                f"the backbone runs more blocks than the {len(self._steps)} that the graph has layers of; one was "
                "added after the sampler was made: take it out, or take a graph made for this backbone"
            )
        step, like = self._steps[index], inputs[0]
        outputs: tuple[Tensor, ...] = ()
        if step.total is not None:
            x = block.reuse(*inputs, self._value(step.total, like))  # type: ignore[operator]
        else:
            attention, mlp = step.sources
            cached = (attention and self._value(attention, like), mlp and self._value(mlp, like))
            x, outputs = self._outputs(block, *inputs, step.fresh, cached)
        self._keep(step, outputs)
        return x

    def whole(self, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return the network's output for x (N, C, H, W), computed or predicted; see `Pass.whole`."""
        step = self._whole
        if step is None:
            return compute()
        source, _ = step.sources
        output = compute() if source is None else self._value(source, x)
        self._keep(step, (output,))
        return output

    def _keep(self, step: BlockStep, outputs: tuple[Tensor, ...]) -> None:
        """Free and store what a step says."""
        for slot in step.frees:
            self.store.drop(slot)
        for part, slot in step.stores:
            self.store.put(slot, outputs[0] + outputs[1] if part == SUM else outputs[part])

    def _value(self, source: Source, like: Tensor) -> Tensor:
        """Return the prediction of a reused output (N, T, D)."""
        value = combined([self.store.get(slot, like) for slot in source.slots], source.weights)
        return value if self._correction is None else self._correction.apply(*source.entry, value)


@contextmanager
def _failure_explained(backbone: Backbone) -> Iterator[None]:
    """Say of an error inside of a network which one it is and what to look for; the error stays one of its kind.

    For what the network computes alone: an error of a solver is no fault of the network's.
    """
    try:
        yield
    except Exception as error:
        if type(error) not in (RuntimeError, TypeError, IndexError) or out_of_memory(error):
            raise
        raise type(error)(
            f"{shown(backbone.conventions.name)} failed while images were drawn: {short_reason(error)}; look for "
            "what was changed in it after it was made (a number of heads, a block, a hook)"
        ) from error
