"""The hooks of a cache graph: one on the model reads the timestep and decides, one per layer reuses or computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from diffusers.hooks.hooks import BaseState, CacheContext, ModelHook, StateManager
from torch import Tensor, nn

from l2c.backbones.layer_form import Branch, LayerForm, over
from l2c.integrations.diffusers.calls import calls_with
from l2c.integrations.diffusers.histories import Branches, BranchHistory
from l2c.integrations.diffusers.timesteps import GraphSchedule, arguments_of, conditions_of, timestep_of
from l2c.io.locks import OwnLock
from l2c.sampling.correction import Correction


class Slot:
    """The decision for one layer in the running forward; the model's hook sets it before each forward.

    Attributes:
        fresh: whether to compute.
        wanted: whether a computed output is read later.
        cached: the predicted output where `fresh` is False.
        output: the output just computed, where wanted.
        follows: whether the layer does as the leader of its run does, see `RunHook`.

    """

    def __init__(self) -> None:
        self.fresh = True
        self.wanted = False
        self.cached: Branch | None = None
        self.output: Branch | None = None
        self.follows = False

    def clear(self) -> None:
        """Free the tensors, and compute: a module may run outside of the model, as a part of another network."""
        self.cached = self.output = None
        self.fresh, self.wanted = True, False


class _UncopiedHook(ModelHook):
    """A hook that refuses copies: a copy of its module would still call the original's forward."""

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise ValueError(
            "a model with a cache graph cannot be copied or pickled, because the copy would run the original's "
            "layers; call l2c.remove(pipe) first, and l2c.apply(copy, graph) after"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.__deepcopy__({})


class LayerHook(_UncopiedHook):
    """Compute a layer, or put its kept output back.

    Args:
        form: how the module's output holds the layer.

    Attributes:
        slots: slots of the calls of one forward that are layers, by their number; other calls compute.
        turn: number of the next call.

    """

    def __init__(self, form: LayerForm) -> None:
        super().__init__()
        self.form = form
        self.slots: dict[int, Slot] = {}
        self.turn = 0

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replace the module's forward."""
        slot = self.slots.get(self.turn)
        self.turn = self.turn + 1
        if slot is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if not slot.fresh:
            assert slot.cached is not None
            return self.form.stand_in(module, args, kwargs, slot.cached)
        output = self.fn_ref.original_forward(*args, **kwargs)
        if slot.wanted:
            slot.output = self.form.branch(module, args, kwargs, output)
        return output


class RunHook(LayerHook):
    """One of several blocks in a row that are always reused together: their sum is kept, the first one adds it.

    Args:
        form: form of the blocks.
        leader: the hook of the first block of the run; None = this one is it.

    Attributes:
        last: whether it is the last of the run.
        start: the input of the run, until its end.

    """

    def __init__(self, form: LayerForm, leader: RunHook | None) -> None:
        super().__init__(form)
        self.leader, self.last = leader, False
        self.start: Tensor | None = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replace the module's forward."""
        leader = self.leader or self
        slot = leader.slots[0]
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        if not slot.fresh:
            return x if self.leader else self.form.stand_in(module, args, kwargs, slot.cached)  # type: ignore[arg-type]
        if slot.wanted and self.leader is None:
            self.start = x
        output = self.fn_ref.original_forward(*args, **kwargs)
        if slot.wanted and self.last:
            slot.output, leader.start = output - leader.start, None
        return output


class SilentHook(_UncopiedHook):
    """Skip a module that feeds only a reused layer; its output then has no tokens, but the usual widths."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.slot = slot
        self._shapes: Any = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replace the module's forward."""
        if self.slot.fresh:
            output = self.fn_ref.original_forward(*args, **kwargs)
            parts = (output,) if isinstance(output, Tensor) else output
            shapes = tuple(tuple(part.shape) if isinstance(part, Tensor) else None for part in parts)
            self._shapes = shapes[0] if parts is not output else shapes
            return output
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if isinstance(self._shapes[0], int):
            return _tokenless(x, self._shapes)
        return tuple(None if shape is None else _tokenless(x, shape) for shape in self._shapes)


def _tokenless(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.new_empty((*shape[:-2], 0, shape[-1]))


class BranchName(StateManager):
    """The name that a pipeline gives to the guidance branch that runs (`cache_context`), in each thread its own."""

    def __init__(self) -> None:
        super().__init__(BaseState)
        self._local = threading.local()

    def set_context(self, context: CacheContext | None) -> None:
        """Take the name."""
        self._local.context = context

    @property
    def name(self) -> str | None:
        """The name; None where none is given."""
        context = getattr(self._local, "context", None)
        return None if context is None else context.name


class GraphHook(_UncopiedHook):
    """Map the timestep of each forward to a row, hand the decisions to the layers, keep what is read later.

    Guidance branches that run apart have histories apart, see `Branches`; so have threads, whose forwards take turns.

    Args:
        schedule: timesteps and rows.
        layers: the slots of the graph's layers, in their order.
        hooks: the hooks that hold them.
        correction: scales and shifts of the rows of the graph that was given; None = none.
        upkeep: function called with the model and its arguments by name at the start of each trajectory; None = none.

    """

    _is_stateful = True

    def __init__(
        self,
        schedule: GraphSchedule,
        layers: Sequence[Slot],
        hooks: Sequence[LayerHook],
        correction: Correction | None = None,
        upkeep: Callable[[nn.Module, Mapping[str, Any]], None] | None = None,
    ) -> None:
        super().__init__()
        self._upkeep = upkeep
        self.schedule = schedule
        self.layers = tuple(layers)
        self.hooks = tuple(hooks)
        self.correction = correction
        self.branch = BranchName()
        self.lock = OwnLock()  # of the forward that runs
        self._local = threading.local()

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replace the model's forward: decide for every layer, run, keep outputs that are read later."""
        with self.lock:
            try:
                decided = self._decide(module, args, kwargs)
                output = self.fn_ref.original_forward(*args, **kwargs)
                if decided is None:
                    return output
                evaluation, history = decided
                self._keep(evaluation, history)
                if evaluation == self.schedule.graph.num_evaluations - 1:
                    self.schedule.end(goes_on=True)
            finally:
                for layer in self.layers:
                    layer.clear()
            return output

    def _turn_to_call(self, module: nn.Module) -> None:
        """Let a call inside another one (a preview, drawn by a callback) have a trajectory of its own.

        That of the outer call waits until the inner one has ended.
        """
        local = self._local
        calls = calls_with(module)
        own, before = calls[0] if calls else None, getattr(local, "call", None)
        local.call = own
        waiting = getattr(local, "waiting", {})
        if own != before and (before in calls or own in waiting):
            state, branches, evaluation = waiting.get(own, (None, Branches(len(self.layers)), -1))
            waiting[before] = self.schedule.exchange(state), self._branches, getattr(local, "evaluation", -1)
            local.branches, local.evaluation = branches, evaluation
        local.waiting = {call: kept for call, kept in waiting.items() if call in calls and call != own}

    @torch.compiler.disable
    def _decide(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int, BranchHistory] | None:
        t = timestep_of(module, args, kwargs)
        for hook in self.hooks:
            hook.turn = 0
        self._turn_to_call(module)
        if self.schedule.before_first(module, t):
            return None
        anew = self.schedule.begins_anew(module, t)
        if anew:
            self._forget()
        e = self.schedule.evaluation(t)
        if self._upkeep is not None and (anew or e < getattr(self._local, "evaluation", e + 1)):
            self._upkeep(module, arguments_of(module, args, kwargs))
        self._local.evaluation = e
        name = self.branch.name
        branches = self._branches
        history = branches.given(e, conditions_of(module, args, kwargs)) if name is None else branches.named(name)
        x = args[0] if args else next((value for value in kwargs.values() if isinstance(value, Tensor)), None)
        history.begin(e, t, tuple(x.shape) if isinstance(x, Tensor) else None)
        graph = self.schedule.graph
        reused = frozenset(graph.reused[e])
        for index, (layer, held) in enumerate(zip(self.layers, graph.held[e], strict=True)):
            if layer.follows:
                continue
            reads = index in reused
            layer.cached = self._corrected(e, index, history.stand_in(graph, e, index, t)) if reads else None
            layer.fresh = layer.cached is None
            layer.wanted = held > 0
        return e, history

    @torch.compiler.disable
    def _keep(self, evaluation: int, history: BranchHistory) -> None:
        """Keep outputs that are read later, free the others."""
        for index, (layer, held) in enumerate(zip(self.layers, self.schedule.graph.held[evaluation], strict=True)):
            if layer.output is not None or len(history.computed[index]) > held:
                history.update(index, layer.output, held)

    def _corrected(self, evaluation: int, layer: int, value: Branch | None) -> Branch | None:
        """Return the prediction for a layer, scaled and shifted as its row says."""
        correction, row = self.correction, self.schedule.given_rows[evaluation]
        if correction is None or value is None:
            return value
        return over(lambda stream: correction.apply(row, layer, stream), value)

    @property
    def _branches(self) -> Branches:
        if not hasattr(self._local, "branches"):
            self._local.branches = Branches(len(self.layers))
        return self._local.branches

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget the trajectory of this thread; the pipelines of diffusers call this when they end."""
        self._forget()
        self.schedule.end()
        return module

    def _forget(self) -> None:
        self._local.branches = Branches(len(self.layers))

    @property
    def cached_bytes(self) -> int:
        """Memory that all branches of this thread hold now, in bytes."""
        return self._branches.nbytes
