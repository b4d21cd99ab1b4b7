"""The hooks of a cache graph: one on the model reads the timestep and decides, one per layer reuses or computes."""

from __future__ import annotations

from typing import Any

from diffusers.hooks.hooks import BaseState, CacheContext, ModelHook, StateManager
from torch import Tensor, nn

from l2c.backbones.layer_form import Branch, LayerForm, ahead, over
from l2c.graph.predictor import LINEAR, WEIGHTED, Weights, combined, line_slope
from l2c.integrations.diffusers.timesteps import Schedule, timestep_of
from l2c.sampling.correction import Correction


class LayerHook(ModelHook):
    """Compute a layer, or put its kept output back; the hook of the model sets what to do before each forward.

    Attributes:
        fresh: whether to compute.
        wanted: whether a computed output is read later.
        cached: what stands in where `fresh` is False.
        output: the output just computed, where wanted.

    """

    def __init__(self, form: LayerForm) -> None:
        super().__init__()
        self.form = form
        self.fresh = True
        self.wanted = False
        self.cached: Branch | None = None
        self.output: Branch | None = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the module's forward."""
        if not self.fresh:
            assert self.cached is not None
            return self.form.stand_in(module, args, kwargs, self.cached)
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.wanted:
            self.output = self.form.branch(module, args, kwargs, output)
        return output


class RunHook(LayerHook):
    """One of several blocks in a row that are always reused together: their sum is kept, the first one adds it.

    Args:
        form: of the blocks.
        leader: the hook of the first block of the run; None = this one is it.

    Attributes:
        last: whether it is the last of the run.
        start: the input of the run, until its end.

    """

    def __init__(self, form: LayerForm, leader: RunHook | None) -> None:
        super().__init__(form)
        self.leader = leader
        self.last = False
        self.start: Tensor | None = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the module's forward."""
        leader = self.leader or self
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        if not leader.fresh:
            return x if self.leader else self.form.stand_in(module, args, kwargs, leader.cached)  # type: ignore[arg-type]
        if leader.wanted and self.leader is None:
            self.start = x
        output = self.fn_ref.original_forward(*args, **kwargs)
        if leader.wanted and self.last:
            leader.output, leader.start = output - leader.start, None
        return output


class SilentHook(ModelHook):
    """Leave out a module that feeds nothing but a reused layer: its output has no tokens, and is never looked at."""

    def __init__(self, layer: LayerHook) -> None:
        super().__init__()
        self.layer = layer

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the module's forward."""
        if self.layer.fresh:
            return self.fn_ref.original_forward(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        return x[:, :0]


class BranchHistory(BaseState):
    """The computed outputs of one guidance branch that are read later, newest first, each with its t."""

    def __init__(self, num_layers: int) -> None:
        self.computed: list[list[tuple[float, Branch]]] = [[] for _ in range(num_layers)]
        self.t = float("inf")
        self.shape: tuple[int, ...] | None = None

    def reset(self) -> None:
        """Forget the trajectory."""
        self.computed = [[] for _ in self.computed]
        self.t = float("inf")

    def begin(self, t: float, shape: tuple[int, ...] | None) -> None:
        """Start an evaluation; time that does not go down, or another batch, means a new trajectory."""
        if t >= self.t or shape != self.shape:
            self.reset()
        self.t, self.shape = t, shape

    def value(self, layer: int, t: float, slope: float | None) -> Branch | None:
        """Return what stands in for a layer at t; None where nothing was computed yet.

        Args:
            layer: its index.
            t: of this evaluation.
            slope: how far the last two outputs are followed; None = along the line in t through both.

        """
        if not self.computed[layer]:
            return None
        (t_last, last), *earlier = self.computed[layer]
        if not earlier or slope == 0:
            return last
        t_before, before = earlier[0]
        return ahead(last, before, line_slope(t, t_last, t_before) if slope is None else slope)

    def sum_of(self, layer: int, weights: Weights) -> Branch | None:
        """Return the weighted sum of a layer's last outputs; the last one where fewer were computed than weights."""
        outputs = [output for _, output in self.computed[layer]]
        if len(outputs) < len(weights):
            return outputs[0] if outputs else None
        return over(lambda *streams: combined(streams, weights), *outputs[: len(weights)])

    def update(self, layer: int, output: Branch | None, count: int) -> None:
        """Take a computed output, hold `count` of them."""
        newest = [] if output is None else [(self.t, output)]
        self.computed[layer] = [*newest, *self.computed[layer]][:count]

    @property
    def nbytes(self) -> int:
        """Memory held now, in bytes."""
        outputs = [output for held in self.computed for _, output in held]
        streams = [s for output in outputs for s in ((output,) if isinstance(output, Tensor) else output)]
        return sum(stream.nbytes for stream in streams if stream is not None)


class GraphHook(ModelHook):
    """Map the timestep of each forward to a row, hand the decisions to the layers, keep what is read later.

    Guidance branches that run apart have histories apart: by the name that the pipeline gives them
    (`cache_context`), else by their order among the forwards at one timestep.

    Args:
        schedule: timesteps and rows.
        layers: the hooks of the graph's layers, in their order.
        correction: scales and shifts of the rows of the graph that was given; None = none.

    """

    _is_stateful = True

    def __init__(self, schedule: Schedule, layers: list[LayerHook], correction: Correction | None = None) -> None:
        super().__init__()
        self.schedule = schedule
        self.layers = layers
        self.correction = correction
        self.branches = StateManager(BranchHistory, (len(layers),))
        self._t: float | None = None
        self._calls = 0
        self._evaluation = 0
        self._history: BranchHistory | None = None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decide for every layer."""
        t = timestep_of(module, args, kwargs)
        if self.schedule.begins_anew(t):
            self.reset_state(module)
        self._evaluation = e = self.schedule.evaluation(t)
        self._history = history = self._branch(t)
        x = args[0] if args else next((value for value in kwargs.values() if isinstance(value, Tensor)), None)
        history.begin(t, None if x is None else tuple(x.shape))
        graph = self.schedule.graph
        slopes = (None,) * len(self.layers) if graph.reuse[e] == LINEAR else graph.slopes[e]
        for index, (layer, fresh, held) in enumerate(zip(self.layers, graph.rows[e], graph.held[e], strict=True)):
            if getattr(layer, "leader", None) is not None:
                continue  # does as its leader does
            layer.cached = None
            if not fresh:
                summed = graph.reuse[e] == WEIGHTED
                weights = graph.weights[e][index]
                value = history.sum_of(index, weights) if summed else history.value(index, t, slopes[index])
                layer.cached = self._corrected(index, value)
            layer.fresh = layer.cached is None
            layer.wanted = held > 0
            layer.output = None
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Keep what is read later, let go of the rest."""
        assert self._history is not None
        for index, (layer, held) in enumerate(
            zip(self.layers, self.schedule.graph.held[self._evaluation], strict=True)
        ):
            if layer.output is not None or len(self._history.computed[index]) > held:
                self._history.update(index, layer.output, held)
            layer.cached = layer.output = None
        return output

    def _corrected(self, layer: int, value: Branch | None) -> Branch | None:
        """Return what stands in for a layer, scaled and shifted as the row that is followed says."""
        correction, row = self.correction, self.schedule.given_rows[self._evaluation]
        if correction is None or value is None:
            return value
        return over(lambda stream: correction.apply(row, layer, stream), value)

    def _branch(self, t: float) -> BranchHistory:
        named = getattr(self.branches, "_context", None) is not None
        self._calls = self._calls + 1 if t == self._t else 0
        self._t = t
        if named:
            return self.branches.get_state()
        self.branches.set_context(CacheContext(f"call {self._calls}"))
        try:
            return self.branches.get_state()
        finally:
            self.branches.set_context(None)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget every trajectory; the pipelines of diffusers call this when they end."""
        context = getattr(self.branches, "_context", None)
        self.branches.reset()
        self.branches.set_context(context)
        self._t, self._calls = None, 0
        for layer in self.layers:
            layer.cached = layer.output = None
        return module

    @property
    def cached_bytes(self) -> int:
        """Memory that all branches hold now, in bytes."""
        return sum(history.nbytes for history in self.branches._state_cache.values())
