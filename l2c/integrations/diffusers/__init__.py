"""Cache graphs on diffusers pipelines, through diffusers' own hooks: apply, run as ever, remove."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

try:
    from diffusers.hooks import HookRegistry
except ModuleNotFoundError as error:
    raise ValueError(
        "cache graphs on pipelines need the package diffusers; run pip install '.[diffusers]' in a clone of l2c"
    ) from error
from diffusers.utils.torch_utils import unwrap_module

from l2c.backbones.layer_form import RESIDUAL
from l2c.backbones.wrap import WrappedLayer
from l2c.graph.cache_graph import CacheGraph
from l2c.integrations.diffusers.fit import check_scheduler, fitted_to
from l2c.integrations.diffusers.hooks import GraphHook, LayerHook, RunHook, SilentHook
from l2c.integrations.diffusers.layers import make_layer
from l2c.integrations.diffusers.timesteps import Schedule
from l2c.io.torchvision_stand_in import make_importable
from l2c.sampling.correction import Correction

make_importable()  # transformers, and with it each pipeline, imports torchvision

# Models that hand each block's output to the next one and to nothing else: no long skips, no control in between.
CHAINED = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
ROOT, LAYER, SILENT = "l2c_cache_graph", "l2c_layer", "l2c_silent"
# Memory and precision; everything else that hooks into a forward may change what it computes.
HARMLESS = ("group_offloading", "layerwise_casting", "peft_autocast_disable", "lazy_prefetch", "layer_execution")


def apply_cache_graph(
    pipe_or_model: Any,
    graph: CacheGraph,
    *,
    resample: bool = False,
    any_weights: bool = False,
    any_guidance: bool = False,
) -> None:
    """Let a pipeline, or its transformer or U-Net, skip the layers that a graph says to skip.

    The pipeline is then called as ever, any number of times. Decisions follow the timestep that the model is given,
    so a trajectory may begin anywhere (image-to-image); what would be reused but was never computed is computed.

    Args:
        pipe_or_model: a diffusers pipeline, or a model of one.
        graph: its layers must be modules of the model.
        resample: take a graph for other timesteps all the same: every evaluation gets the row of the nearest one,
            with a warning and a summary. Needs the pipeline.
        any_weights: accept a graph that was made for other weights of the same architecture.
        any_guidance: accept calls of the pipeline at another guidance scale than the graph's.

    Raises:
        ValueError: if the model has another architecture, other weights or a cache that is already on, or the
            correction is of another graph; from the call of the pipeline, if its timesteps or guidance scale are not
            the graph's, or it adds noise that the graph was not made for.
        FileNotFoundError: if the graph's correction is missing.

    """
    model = denoiser_of(pipe_or_model)
    pipe = None if model is pipe_or_model else pipe_or_model
    model = unwrap_module(model)
    if resample and pipe is None:
        raise ValueError("resample=True reads the timesteps from the scheduler; give the pipeline, not its model")
    _check_uncached(model)
    given, graph = graph, fitted_to(graph, model, any_weights=any_weights)
    correction = Correction.of(given)  # of the graph under the names that it was made with
    layers = [make_layer(model, name) for name in graph.layers]
    if pipe is not None and not resample:
        check_scheduler(graph, pipe.scheduler)
    hooks = _hooks(graph, layers, share=type(model).__name__ in CHAINED and correction is None)
    for layer, hook in zip(layers, hooks, strict=True):
        HookRegistry.check_if_exists_or_initialize(layer.module).register_hook(hook, LAYER)
        for module in layer.silent:
            HookRegistry.check_if_exists_or_initialize(module).register_hook(SilentHook(hook), SILENT)
    schedule = Schedule(
        graph, None if pipe is None else weakref.ref(pipe), resample=resample, any_guidance=any_guidance
    )
    root = HookRegistry.check_if_exists_or_initialize(model)
    root.register_hook(GraphHook(schedule, hooks, correction), ROOT)
    # diffusers remembers which modules below have hooks, and hands the guidance branch's name to those alone.
    root.invalidate_child_registries_cache()


def remove_cache_graph(pipe_or_model: Any) -> None:
    """Take the graph off: the model computes bit for bit what it did before. Without a graph nothing happens."""
    root = HookRegistry.check_if_exists_or_initialize(unwrap_module(denoiser_of(pipe_or_model)))
    for name in (ROOT, SILENT, LAYER):
        root.remove_hook(name, recurse=True)
    root.invalidate_child_registries_cache()


def denoiser_of(pipe_or_model: Any) -> Any:
    """Return the transformer or U-Net of a pipeline; a model is its own.

    Raises:
        ValueError: there is none.

    """
    if isinstance(pipe_or_model, nn.Module):
        return pipe_or_model
    for name in ("transformer", "unet"):
        model = getattr(pipe_or_model, name, None)
        if isinstance(model, nn.Module):
            return model
    raise ValueError(
        f"{type(pipe_or_model).__name__} has neither a transformer nor a unet; give a diffusers pipeline, or the "
        "model that is called at every step"
    )


def _check_uncached(model: nn.Module) -> None:
    """Refuse a model that another mechanism, or another graph, already caches."""
    registries: list[Any] = [getattr(module, "_diffusers_hook", None) for module in model.modules()]
    names = [name for registry in registries if registry is not None for name in registry.hooks]
    if ROOT in names:
        raise ValueError("a cache graph is already applied to this model; call remove_cache_graph first")
    foreign = next((name for name in names if not name.startswith(HARMLESS)), None)
    if getattr(model, "is_cache_enabled", False) or foreign is not None:
        by = type(model._cache_config).__name__ if getattr(model, "is_cache_enabled", False) else foreign
        raise ValueError(f"the model is already cached by {by}; call its disable_cache() before applying a graph")
    if getattr(model, "_is_cached", False) or getattr(model, "_context_manager", None) is not None:
        raise ValueError("the model is already cached by cache-dit; call cache_dit.disable_cache(pipe) first")


def _hooks(graph: CacheGraph, layers: Sequence[WrappedLayer], *, share: bool) -> list[LayerHook]:
    """Return a hook per layer; where they may share, blocks in a row that are reused alike keep one sum.

    A sum is followed as its blocks are where their weights are the same; corrections differ from block to block.
    """
    columns = list(zip(zip(*graph.rows, strict=True), zip(*graph.weights, strict=True), strict=True))
    hooks: list[LayerHook] = []
    for index, layer in enumerate(layers):
        if not share or layer.form is not RESIDUAL:
            hooks.append(LayerHook(layer.form))
            continue
        before = hooks[-1] if index and _follows(layers[index - 1].name, layer.name) else None
        together = isinstance(before, RunHook) and columns[index - 1] == columns[index]
        hook = RunHook(layer.form, (before.leader or before) if together else None)  # type: ignore[union-attr]
        hook.last = True
        if together:
            before.last = False  # type: ignore[union-attr]
        hooks.append(hook)
    return hooks


def _follows(name: str, after: str) -> bool:
    """Whether two names are those of neighbours in one list of blocks."""
    (head, _, index), (head_after, _, index_after) = name.rpartition("."), after.rpartition(".")
    return head == head_after and index.isdigit() and index_after == str(int(index) + 1)
