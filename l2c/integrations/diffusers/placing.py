"""Puts hooks on the modules of models and takes them off: those of all denoisers, or none."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, ClassVar

from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn

from l2c.backbones.backbone import class_name
from l2c.backbones.forwards import without_wrapper
from l2c.integrations.diffusers.calls import Turn, at_will, call_of, in_turns
from l2c.integrations.diffusers.denoisers import denoisers_in, denoisers_of, part_of, unwrapped
from l2c.integrations.diffusers.layers import module_of

log = logging.getLogger(__name__)
Placed = Sequence[tuple[nn.Module, ModelHook, str]]  # modules, each with its hook and the hook's name
ROOT, SILENT, LAYER = KINDS = "l2c_cache_graph", "l2c_silent", "l2c_layer"  # names of the hooks, the outer ones first
OUTER = ("cp_input", "cp_output")  # of context parallelism: they give a module its part of the tokens
# Memory, precision and devices; everything else that hooks into a forward may change what it computes.
HARMLESS = (
    *("group_offloading", "layerwise_casting", "peft_autocast_disable", "lazy_prefetch", "layer_execution"),
    *OUTER,
)


def put(module: Any, hook: ModelHook, name: str) -> None:
    """Register a hook beneath those that move weights or split tokens, whichever came first.

    Accelerate puts back the forward that it found, model offload so after every call: a hook above it would be lost.
    """
    registry = HookRegistry.check_if_exists_or_initialize(module)
    with _beneath_accelerate(module):
        outer = [(name, hook) for name, hook in registry.hooks.items() if name.startswith(OUTER)]
        for other, _ in reversed(outer):
            registry.remove_hook(other, recurse=False)
        registry.register_hook(hook, name)
        if name in _FORWARDS:  # one function for all modules: torch.compile compiles blocks that are alike once
            setattr(module, name, hook)
            module.forward = MethodType(_FORWARDS[name], module)
        for other, above in outer:
            registry.register_hook(above, other)


def take(module: Any, name: str) -> None:
    """Take a hook off, and no other; without one of that name nothing happens."""
    if hasattr(module, "_diffusers_hook"):
        with _beneath_accelerate(module):
            module._diffusers_hook.remove_hook(name, recurse=False)
        vars(module).pop(name, None)


def _forward(name: str) -> Callable[..., Any]:
    return lambda module, *args, **kwargs: getattr(module, name).new_forward(module, *args, **kwargs)


_FORWARDS = {name: _forward(name) for name in (LAYER, SILENT)}


@contextmanager
def _beneath_accelerate(module: Any) -> Iterator[None]:
    """Let `module.forward` be the one that accelerate's hook calls, where there is such a hook."""
    covered = "_old_forward" in vars(module)
    if covered:
        outer, module.forward = module.forward, module._old_forward
    try:
        yield
    finally:
        if covered:
            module._old_forward, module.forward = module.forward, outer


class HookedModules:
    """The modules that carry hooks, by name; a module that replaces one (a LoRA layer) takes over its hooks.

    Args:
        model: the model.
        placed: modules of it, each with its hook and the hook's name.

    """

    def __init__(self, model: nn.Module, placed: Placed) -> None:
        names = {module: without_wrapper(name) for name, module in model.named_modules()}
        self._placed = [(names[module], module, hook, kind) for module, hook, kind in placed]

    def look(self, model: nn.Module) -> None:
        """Move the hooks of modules that were replaced."""
        for place, (name, before, hook, kind) in enumerate(self._placed):
            if (now := module_of(model, name)) is not before:
                take(before, kind)
                put(now, hook, kind)
                HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()
                self._placed[place] = (name, now, hook, kind)


def root_of(model: nn.Module) -> Any:
    """Return the hook of the graph that is applied to a model, a `GraphHook`; None without one."""
    registry: Any = getattr(model, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(ROOT)


def hooks_on(model: nn.Module) -> Placed:
    """Return the hooks of the graph that is applied to a model, in the order in which they were put."""
    registries = [(module, getattr(module, "_diffusers_hook", None)) for module in model.modules()]
    named = [(module, registry.hooks.items()) for module, registry in registries if registry is not None]
    return [(module, hook, kind) for module, hooks in named for kind, hook in hooks if kind in KINDS]


def check_uncached(model: nn.Module, *, later: bool = False) -> None:
    """Refuse a model that another mechanism, or a graph of another model with its layers, already caches.

    Args:
        model: the model.
        later: it has a graph, and the other one was switched on since.

    Raises:
        ValueError: if it is cached.

    """
    mend = ", or l2c.remove, for both cannot cache it" if later else " before applying a graph"
    when = "now" if later else "already"
    registries: list[Any] = [getattr(module, "_diffusers_hook", None) for module in model.modules()]
    names = [name for registry in registries if registry is not None for name in registry.hooks]
    if LAYER in names and root_of(model) is None:
        raise ValueError(
            f"a cache graph is already applied to another model that has layers of this {class_name(model)}; call "
            "l2c.remove on that one first"
        )
    harmless = (*HARMLESS, *KINDS)
    foreign = next((name for name in names if not name.startswith(harmless)), None)
    if getattr(model, "is_cache_enabled", False) or foreign is not None:
        by = type(model._cache_config).__name__ if getattr(model, "is_cache_enabled", False) else foreign
        raise ValueError(f"the model is {when} cached by {by}; call its disable_cache(){mend}")
    if getattr(model, "_is_cached", False) or getattr(model, "_context_manager", None) is not None:
        raise ValueError(f"the model is {when} cached by cache-dit; call cache_dit.disable_cache(pipe){mend}")


def exchange(hooks: Mapping[nn.Module, Placed]) -> None:
    """Put hooks on models in the place of those of earlier graphs; if that fails, the earlier ones are there again.

    Args:
        hooks: for each model the hooks on its modules, the one on the model itself last.

    """
    before = {model: hooks_on(model) for model in hooks}
    try:
        for model, placed in hooks.items():
            _put_all(model, placed)
    except BaseException:
        for model, placed in before.items():
            _put_all(model, placed)
        raise


def _put_all(model: nn.Module, placed: Placed) -> None:
    root = root_of(model)
    with nullcontext() if root is None else root.lock:  # a forward that runs in another thread ends first
        for module in model.modules():
            for name in KINDS:
                take(module, name)
        for module, hook, name in placed:
            put(module, hook, name)
    # diffusers remembers which modules below have hooks, and hands the guidance branch's name to those alone.
    HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()


class EndOfCall:
    """Tells the graphs of a pipeline that a call has ended, and says which denoisers ran without one.

    These were put in after the graph was applied. diffusers tells the components of a pipeline that have such a
    method, but not every model has; the scheduler gets one. In a copy or a pickle of a part it does nothing.

    Args:
        pipe: the pipeline; its denoisers have graphs.
        spare: whether another part than the scheduler has it, and speaks where the scheduler is another one by then.

    """

    METHOD = "_reset_stateful_cache"
    _watched: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()  # schedulers and other parts

    def __init__(self, pipe: Any, *, spare: bool = False) -> None:
        self._spare = spare
        self._pipe: Callable[[], Any] = weakref.ref(pipe)
        self._models = {name: weakref.ref(model) for name, model in denoisers_of(pipe).items()}

    def __call__(self) -> None:
        """Look at the denoisers."""
        pipe = self._pipe()
        if self._spare and isinstance(getattr(getattr(pipe, "scheduler", None), self.METHOD, None), EndOfCall):
            return
        call = None if pipe is None else call_of(pipe)
        if call is not None:
            Turn.check(pipe.scheduler, call)
        for name, before in self._models.items():
            model, now = before(), part_of(pipe, name)
            if not isinstance(now, nn.Module):
                continue
            root = root_of(unwrapped(now))
            if root is not None:
                root.schedule.end()  # diffusers does not tell every model
            elif model is None or root_of(model) is not None:
                log.warning(
                    "%s.%s was replaced after the cache graph was applied, so that this call ran uncached; call "
                    "l2c.apply(pipe, graph) again, or l2c.remove(pipe) to do without",
                    type(pipe).__name__,
                    name,
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (bool,)  # which does nothing, and is read where l2c is not installed

    @classmethod
    def watch(cls, pipe: Any, *, anew: bool = True) -> None:
        """Watch the calls of a pipeline with a scheduler; with `anew` false, where that is not watched yet."""
        scheduler = getattr(pipe, "scheduler", None)
        known = getattr(scheduler, cls.METHOD, None)
        if scheduler is not None and (anew or not isinstance(known, cls) or known._pipe() is None):
            setattr(scheduler, cls.METHOD, cls(pipe))
            in_turns(scheduler)
            cls._watched.add(scheduler)
            models = denoisers_in(pipe).values()
            networks = (part for part in vars(pipe).values() if isinstance(part, nn.Module))
            for part in (part for part in networks if unwrapped(part) not in models):
                own = vars(part).get(cls.METHOD)
                taken = isinstance(own, cls) and own._pipe() is not pipe and own._needed(part)
                if not taken and not hasattr(type(part), cls.METHOD):
                    setattr(part, cls.METHOD, cls(pipe, spare=True))
                    cls._watched.add(part)
                    break

    @classmethod
    def unwatch(cls, pipe: Any) -> None:
        """Leave as they were a pipeline's parts, and all those whose pipelines have no graph now."""
        for scheduler in list(cls._watched):
            own = getattr(scheduler, cls.METHOD, None)
            if isinstance(own, cls) and own._pipe() is not pipe and own._needed(scheduler):
                continue
            cls._watched.discard(scheduler)
            if isinstance(own, cls):
                delattr(scheduler, cls.METHOD)
            at_will(scheduler)

    def _needed(self, scheduler: Any) -> bool:
        """Return whether a denoiser of the pipeline has a graph, and the pipeline has this part."""
        pipe = self._pipe()
        models = {} if pipe is None or not _is_part(pipe, scheduler) else denoisers_in(pipe)
        known = [model() for model in self._models.values()]  # one that was replaced has its graph yet
        return bool(models) and any(
            model is not None and root_of(model) is not None for model in (*models.values(), *known)
        )


def _is_part(pipe: Any, part: Any) -> bool:
    return any(part is own for own in getattr(pipe, "__dict__", {}).values())
