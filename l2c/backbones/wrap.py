"""Any torch module as a backbone: its layers are found by name, and intercepted for the time of one evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from l2c.backbones.backbone import Backbone, Conventions, class_name
from l2c.backbones.foreign_module import around, bare, check_parameters, labels_of, match_layers, modules_of, shape_of
from l2c.backbones.forwards import compiled, in_turn, replaced, uncompiled
from l2c.backbones.layer_cache import Fresh, LayerOutput, Pass, mix
from l2c.backbones.layer_form import (
    Branch,
    LayerForm,
    OutputForm,
    ResidualForm,
    Shapes,
    first,
    joined,
    shapes_of,
    split,
)
from l2c.diffusion.schedule import FLOW
from l2c.graph.given import each, text
from l2c.graph.layer_names import block_of
from l2c.io.locks import OwnLock
from l2c.io.names import listed, near_keywords
from l2c.io.tensors import leaves_of

# They may run as one kernel, none of their parts being called.
FUSING = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class WrappedLayer:
    """One layer of a module that is not ours.

    Attributes:
        name: the module's name.
        module: its output holds the layer's.
        form: how the module's output holds the layer.
        silent: modules that feed nothing but this layer.
        call: which of the module's calls in one evaluation is this layer, from 0; other calls are other layers.

    """

    name: str
    module: nn.Module
    form: LayerForm = field(default_factory=OutputForm)
    silent: tuple[nn.Module, ...] = ()
    call: int = 0


class WrappedModule(Backbone):
    """A module of any kind whose residual branches can be reused across evaluations; see `wrap`.

    It is not changed: between two evaluations its forwards are its own, and saved weights keep its keys. Outputs of
    layers that work on two streams of tokens are kept as one tensor, one stream after the other.

    Args:
        module: the network, `module(x, timestep=t)` or with labels beside.
        layers: its layers, in the order in which they run.
        timestep: the name of the parameter of its forward that takes t (N,).
        labels: the name of the one that takes y (N,); None = it takes none.
        conventions: conventions of the weights.
        input_shape: (C, H, W) of one input; None = unknown, then noise must be given and costs cannot be measured.
        num_embedded_labels: rows of the label table, the null label included.

    """

    layers_per_block = 1
    usual_time = 1.0  # a timestep at which the module itself runs

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[WrappedLayer],
        *,
        timestep: str,
        labels: str | None,
        conventions: Conventions,
        input_shape: tuple[int, ...] | None,
        num_embedded_labels: int = 0,
    ) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)
        self.layers = tuple(layers)
        self.layer_names = tuple(layer.name for layer in self.layers)
        self.timestep = timestep
        self.labels = labels
        self.conventions = conventions
        self.num_embedded_labels = num_embedded_labels
        self._input_shape = input_shape
        self._streams: dict[tuple[int, torch.Size], Shapes] = {}  # of each layer, by the shape of its branch
        self._around: dict[nn.Module, list[nn.Module]] = {}  # what holds layers, of each module in turn
        self._lock = OwnLock()
        self._fusing = any(isinstance(part, FUSING) for part in module.modules())

    def __reduce_ex__(self, protocol: Any) -> Any:
        with self._lock:  # no evaluation has modules changed; weights are shared until they are copied themselves
            made: Any = super().__reduce_ex__(protocol)
            weights = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
            return *made[:2], copy.deepcopy(made[2], weights)

    @property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Shape of one input.

        Raises:
            ValueError: if no shape was given.

        """
        if self._input_shape is None:
            raise ValueError("the shape of an input is needed here; say l2c.wrap(..., input_shape=(C, H, W))")
        return self._input_shape  # type: ignore[return-value]  # (T, D) for models that are given tokens

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's own state dict, with its own keys."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the module's own state dict."""
        return self.module.load_state_dict(state_dict, *args, **kwargs)

    def summary(self) -> str:
        """Return the list of layers, one a line, for people."""
        lines = [f"{len(self.layers)} layers of {self.conventions.name}"]
        lines += [f"{i:4d}  {layer.name}  {type(layer.module).__name__}" for i, layer in enumerate(self.layers)]
        return "\n".join(lines)

    def blocks(self) -> list[nn.Module]:
        """Return the modules that the layers are parts of, each once; a layer that is a whole block is its own.

        Those of other modules that take this one's place at some evaluations follow.
        """
        names = dict.fromkeys(map(block_of, self.layer_names))
        return [found[name] for found in map(modules_of, self.modules_in_turn()) for name in names]

    def modules_in_turn(self) -> list[nn.Module]:
        """Return the modules that take turns, one at each evaluation; here there is only one."""
        return [self.module]

    def call(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Return the module's prediction, called as its own code would call it.

        Raises:
            ValueError: if labels are missing, the module is in training mode, or its output has not the shape of x.

        """
        name = self.conventions.name
        if self.module.training:
            raise ValueError(
                f"{name} is in training mode, in which dropout and dropped labels are drawn at random; call "
                ".eval() on it before it predicts here"
            )
        conditions = {self.timestep: t}
        if self.labels is not None:
            if y is None:
                raise ValueError(f"{name} needs labels: give y (N,) for {self.labels!r}")
            conditions[self.labels] = y
        if self._fusing:
            torch.backends.mha.set_fastpath_enabled(False)
        output = first(self.module(x, **conditions))
        wanted, got = tuple(x.shape), tuple(output.shape)
        if got != wanted and got != (wanted[0], 2 * wanted[1], *wanted[2:]):
            raise ValueError(
                f"{name} returns {got} for an input of shape {wanted}, must be the shape of the input, or twice its "
                "channels where it predicts variances too; wrap a module around it whose forward returns that"
            )
        return output

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict, computing every layer: the module's own forward; see `Backbone.forward`."""
        return self.call(x, t, y)

    def _call(self, block: Any, *inputs: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if self.recompute_activations and torch.is_grad_enabled():
            raise ValueError("recompute_activations needs a backbone of our own; leave it off for wrapped modules")
        return block(*inputs)

    def run(self, x: Tensor, condition: tuple[Tensor, ...], layers: Pass) -> Tensor:
        """Predict from x and (t,) or (t, y), each layer being a block of the pass; see `Backbone.run`."""
        t, *y = condition
        calls: dict[nn.Module, list[Callable[..., Any]]] = {}
        for index, layer in sorted(enumerate(self.layers), key=lambda item: item[1].call):
            calls.setdefault(layer.module, []).append(self._caller(index, layers, by_input=x.requires_grad))
        names = {layer.module: layer.name for layer in reversed(self.layers)}
        if self.module not in self._around:
            self._around[self.module] = around(self.module, list(calls))
        outer = {module: uncompiled(module) for module in self._around[self.module] if compiled(module)}
        inner = {module: in_turn(names[module], each) for module, each in calls.items()}
        with self._lock, replaced({**outer, **inner}):
            return self.call(x, t, y[0] if y else None)

    def _caller(self, index: int, layers: Pass, *, by_input: bool) -> Callable[..., Any]:
        """Return what replaces a layer's forward in one evaluation, `call(forward, *args, **kwargs)`."""
        layer = self.layers[index]

        def compute_or_reuse(
            like: Tensor,
            original: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: Mapping[str, Any],
            fresh: tuple[Fresh, Fresh],
            cached: tuple[LayerOutput, LayerOutput],
        ) -> tuple[Any, Any]:
            def branch_of(output: Any) -> Tensor:
                return self._packed(index, layer.form.branch(layer.module, args, kwargs, output))

            if fresh[0] is True:  # the output itself, bit for bit
                output = original(*args, **kwargs)
                if not torch.is_grad_enabled():
                    return output, _Outputs(lambda: branch_of(output))
                branch = branch_of(output)
                if by_input and not any(value.requires_grad for _, value in leaves_of((args, kwargs))):
                    branch = branch.detach().requires_grad_(True)  # of prompt and time alone: gradients begin here
                if branch is not output and branch.requires_grad:  # what follows must depend on the branch
                    given = branch.clone() if branch.is_leaf else branch  # which the model may change in place
                    output = layer.form.stand_in(layer.module, args, kwargs, self._unpacked(index, given))
                return output, _Outputs(lambda: branch)
            branch = mix(fresh[0], lambda: branch_of(original(*args, **kwargs)), cached[0])
            output = layer.form.stand_in(layer.module, args, kwargs, self._unpacked(index, branch))
            return output, _Outputs(lambda: branch)

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            like = next((value for _, value in leaves_of((args, kwargs))), None)
            if like is None:
                raise ValueError(
                    f"layer {layer.name} is given no tensor; leave it out of the patterns given to l2c.wrap"
                )
            return layers.run(index, compute_or_reuse, like, original, args, kwargs)  # type: ignore[arg-type]

        return call

    def _packed(self, index: int, branch: Branch) -> Tensor:
        """Return a branch as one tensor; see `joined`."""
        if isinstance(branch, Tensor):
            return branch
        whole = joined(branch)
        self._streams[index, whole.shape[1:]] = shapes_of(branch)
        return whole

    def _unpacked(self, index: int, branch: Tensor) -> Branch:
        streams = self._streams.get((index, branch.shape[1:]))
        return branch if streams is None else split(branch, streams)


class _Outputs:
    """The output of a layer in the place of the two outputs of a block; it is computed when it is read."""

    def __init__(self, branch: Callable[[], Tensor]) -> None:
        self._branch = branch

    def __getitem__(self, part: int) -> Tensor:
        return self._branch()


@near_keywords()
def wrap(
    module: nn.Module,
    layers: Sequence[str],
    timestep: str = "t",
    *,
    labels: str | None = None,
    num_labels: int = 0,
    null_label: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    residual: Sequence[str] = (),
    name: str | None = None,
    schedule: str | Sequence[float] = "linear",
    first_timestep: int = 0,
    guidance: str = "cfg",
    prediction: str | None = None,
) -> WrappedModule:
    """Return a backbone of any module that predicts noise or velocity: for policies, router training, the sampler.

    The module is frozen and put into eval mode; its forwards and the keys of its weights stay as they are. What was
    matched is in `.layer_names` and, for people, in `.summary()`. Torch's fused attention path is turned off.

    Args:
        module: its first positional argument is x (N, C, H, W); it returns the prediction, or a tuple or output
            object that begins with it. Inside torch.compile, (Distributed)DataParallel or AveragedModel it is
            unwrapped; compiled modules that hold layers run uncompiled in an evaluation, compiled layers compiled.
        layers: patterns of module names, one branch of a block each, `blocks.*.attn`; `*` is one part of a name.
        timestep: the parameter of its forward that takes t (N,).
        labels: the one that takes labels y (N,); None = the module takes none.
        num_labels: labels are 0..num_labels-1.
        null_label: the unconditional label, for guidance; None = there is none.
        input_shape: (C, H, W) of one x; needed to draw noise and to measure costs.
        residual: patterns of modules, among those matched, that add their input themselves (whole blocks).
        name: the backbone's name in cache graphs; None = the module's class.
        schedule: noise schedule of the weights, `linear`, `scaled_linear`, `cosine` or `flow`; or (T,) betas.
        first_timestep: t at the least noisy training step.
        guidance: what `cfg_scale` means: `cfg`, `dit` or `uvit`.
        prediction: what the module returns, `noise`, `v`, `data` or `flow`; None = `flow` of a flow, else `noise`.

    Raises:
        ValueError: if a pattern matches nothing, the forward has no such parameter or needs further ones, or an
            argument does not fit.

    """
    module = _unwrapped(module)
    check_parameters(module, timestep=text("timestep", timestep), labels=labels)
    null_label, num_labels = labels_of(labels, num_labels, null_label)
    names, found = match_layers(module, layers), modules_of(module)
    whole, name = _whole(module, names, residual), text("name", class_name(module) if name is None else name)
    return WrappedModule(
        module,
        [WrappedLayer(n, found[n], ResidualForm() if n in whole else OutputForm()) for n in names],
        timestep=timestep,
        labels=labels,
        conventions=_conventions(name, schedule, first_timestep, guidance, null_label, prediction),
        input_shape=shape_of(input_shape),
        num_embedded_labels=num_labels + (null_label is not None) if labels else 0,
    )


def _conventions(
    name: str, schedule: Any, first_timestep: int, guidance: str, null_label: int | None, prediction: str | None
) -> Conventions:
    """Return the conventions, in which a flow predicts a flow unless another prediction is given."""
    if prediction is None:
        prediction = "flow" if isinstance(schedule, str) and schedule == FLOW else "noise"
    return Conventions(name, schedule, first_timestep, guidance, null_label, prediction)


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers of torch; refuse one that is a backbone already."""
    module = bare(module)
    if isinstance(module, WrappedModule):
        raise ValueError(
            f"l2c.wrap takes a torch module, got one that is wrapped already, with the layers "
            f"{listed(module.layer_names, 3)}; use it as it is, or wrap its .module again for other layers"
        )
    return module


def _whole(module: nn.Module, names: Sequence[str], patterns: Sequence[str]) -> Sequence[str]:
    found = match_layers(module, patterns) if tuple(each("patterns of layers", patterns)) else ()
    stray = [name for name in found if name not in names]
    if stray:
        raise ValueError(f"residual= matches {stray[0]}, which is no layer; match it in layers= too")
    return found
