"""Cache graphs on diffusers pipelines, through diffusers' own hooks: apply, run as usual, remove."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from l2c.io.lazy import needed
from l2c.io.names import near_keywords, quoted
from l2c.io.numbers import truth_value

with needed("diffusers", "cache graphs on pipelines need", "diffusers"):
    from diffusers.hooks import ModelHook

from l2c.backbones.backbone import class_name
from l2c.backbones.digest import WeightsWatch
from l2c.backbones.layer_form import ResidualForm
from l2c.backbones.wrap import WrappedLayer
from l2c.calibration.measurements import Measurements
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.collection import CacheGraphs
from l2c.integrations.diffusers.adapters import facts_under_adapters, scaled
from l2c.integrations.diffusers.calls import check_idle
from l2c.integrations.diffusers.denoisers import check_apart, denoisers_of
from l2c.integrations.diffusers.denoisers import denoiser_of as denoiser_of
from l2c.integrations.diffusers.denoisers import modes_kept as modes_kept
from l2c.integrations.diffusers.fit import WeightsCheck, check_scheduler, fitted_to, scale_beside
from l2c.integrations.diffusers.hooks import GraphHook, LayerHook, RunHook, SilentHook, Slot
from l2c.integrations.diffusers.layers import make_layer
from l2c.integrations.diffusers.placing import (
    LAYER,
    ROOT,
    SILENT,
    EndOfCall,
    HookedModules,
    Placed,
    check_uncached,
    exchange,
    hooks_on,
    root_of,
)
from l2c.integrations.diffusers.rows import CalibratedRows, FinishedRows, ResampledRows, Rows
from l2c.integrations.diffusers.scheduler_solver import prediction_of
from l2c.integrations.diffusers.timesteps import GraphSchedule
from l2c.sampling.correction import Correction

# Models that hand each block's output to the next one and to nothing else: no long skips, no control in between.
CHAINED = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
Graphs: TypeAlias = "CacheGraph | Mapping[str, CacheGraph]"


@near_keywords()
def apply(
    pipe_or_model: Any,
    graph: Graphs | Measurements | str | Path,
    *,
    budget: float | str | None = None,
    resample: bool = False,
    any_weights: bool = False,
    any_adapters: bool = False,
    any_guidance: bool = False,
) -> None:
    """Apply a cache graph, or a calibration, to a pipeline, or to its transformer or U-Net.

    It takes the place of an earlier one, which stays if this one is refused. The pipeline is then called as usual,
    any number of times. Decisions follow the timestep that the model is given, so a trajectory may begin anywhere
    (image-to-image). A reused layer without a computed output is computed. A denoiser that is put into the pipeline
    later has no graph, which a warning says at the end of each call.

    Args:
        pipe_or_model: a diffusers pipeline, or a model of one.
        graph: its layers must be modules of the model. For pipelines with two denoisers a graph for each, by its
            name there, see `CacheGraphs`. Or an `l2c.Ladder`, whose rung of the budget is taken. Or an
            `l2c.Calibration` of the model: the pipeline then takes any number of steps, resolution and strength, and
            rows are made at the first call of each schedule. Needs the pipeline.
        budget: what the graphs of a calibration may cost, see `l2c.policies.budget`.
        resample: accept a graph for other timesteps: every evaluation gets the row of the nearest one, with a warning
            and a summary. Needs the pipeline.
        any_weights: accept a graph that was made for other weights of the same architecture.
        any_adapters: accept any adapters (LoRA, IP-Adapter), now or later; the weights beneath must be the graph's.
        any_guidance: accept calls at another guidance scale than the graph's, of this pipeline alone.

    Raises:
        ValueError: if the model has another architecture, other weights or a cache that is already on, the correction
            is of another graph, or the graph is for one of two denoisers; from the call of the pipeline, if its
            timesteps or guidance scale are not the graph's, it adds noise that the graph was not made for, or weights
            or adapters (LoRA) are no longer the graph's; with a calibration, if its timesteps lie outside those
            measured, or the budget is out of reach.
        FileNotFoundError: if the graph's correction is missing.

    """
    of_weights = {"any_weights": any_weights, "any_adapters": any_adapters}
    for name, value in {**of_weights, "any_guidance": any_guidance, "resample": resample}.items():
        truth_value(name, value)
    if hasattr(graph, "rung"):
        graph, budget = _rung(graph, budget), None
    if isinstance(graph, Measurements) or budget is not None:
        made = _calibrated(pipe_or_model, graph, budget, resample=resample)
        model = denoiser_of(pipe_or_model)
        watch = _watched(made.first, model, **of_weights)
        _check_free(model)
        hooks = {model: _hooks_of(model, pipe_or_model, made, None, watch, any_guidance=any_guidance)}
    else:
        hooks = _hooks_of_graphs(pipe_or_model, graph, of_weights, resample=resample, any_guidance=any_guidance)
    exchange(hooks)
    EndOfCall.watch(pipe_or_model)


def _watched(graph: CacheGraph, model: nn.Module, *, any_weights: bool, any_adapters: bool) -> WeightsWatch | None:
    """Refuse weights that are not a graph's; return the check for later calls, None if any weights are accepted."""
    if any_weights:
        return None
    check = WeightsCheck(graph, any_adapters=any_adapters)
    check(model)
    if graph.fingerprint is None:
        return None
    since = "the graph was applied (fused LoRA or projections?)"
    return WeightsWatch(model, check, since=since, facts=facts_under_adapters)


def _hooks_of_graphs(
    pipe_or_model: Any,
    graph: Graphs | str | Path,
    of_weights: Mapping[str, bool],
    *,
    resample: bool,
    any_guidance: bool,
) -> dict[nn.Module, Placed]:
    """Return the hooks of finished graphs, one for each denoiser; no model is changed."""
    models = denoisers_of(pipe_or_model)
    graph = _loaded(graph, two=len(models) > 1)
    pipe = None if isinstance(pipe_or_model, nn.Module) else pipe_or_model
    graphs = graph if isinstance(graph, Mapping) else {next(iter(models)): graph}
    if set(graphs) != set(models):
        raise ValueError(
            f"{type(pipe_or_model).__name__} has the denoisers {', '.join(models)}, but there are graphs for "
            f"{', '.join(graphs)} alone; give a graph for each, l2c.CacheGraphs({{name: graph, ...}})"
        )
    if resample and (pipe is None or len(models) > 1):
        raise ValueError(
            "resample=True reads the timesteps from the scheduler; give the pipeline, not its model"
            if pipe is None
            else "resample=True cannot tell which timesteps each of two denoisers has; make graphs for this schedule"
        )
    hooks: dict[nn.Module, Placed] = {}
    for name, model in models.items():
        _check_free(model)
        fitted = fitted_to(graphs[name], model)
        watch = _watched(fitted, model, **of_weights)
        part = len(models) > 1  # it makes some of the pipeline's evaluations, the other model the others
        rows: Rows = ResampledRows(fitted) if resample else FinishedRows(fitted, part=part)
        if pipe is not None and not resample:
            check_scheduler(fitted, pipe.scheduler, rows.or_else)
        correction = Correction.of(graphs[name])  # under the names that it was made with
        hooks[model] = _hooks_of(model, pipe, rows, correction, watch, any_guidance=any_guidance)
    check_apart({name: [module for module, *_ in hooks[model]] for name, model in models.items()}, models)
    return hooks


def _calibrated(pipe: Any, calibration: Any, budget: float | str | None, *, resample: bool) -> CalibratedRows:
    """Return the rows of a calibration for a pipeline; refuse what has no calibration, or no schedule of its own."""
    kind = type(pipe).__name__
    if not isinstance(calibration, Measurements) or not hasattr(calibration, "graph"):
        what = quoted(calibration) if isinstance(calibration, (str, Path)) else type(calibration).__name__
        raise ValueError(
            f"budget is for an l2c.Calibration or an l2c.Ladder, got {what}; a finished graph has its budget: leave "
            "budget out, or give l2c.Calibration.load(PATH)"
        )
    if budget is None:
        raise ValueError("a calibration makes graphs of any budget; say which, budget=0.5 for half of the MACs")
    if resample:
        raise ValueError("resample=True is for a finished graph; a calibration makes graphs for any timesteps")
    if isinstance(pipe, nn.Module) or len(denoisers_of(pipe)) > 1:
        raise ValueError(
            f"a calibration reads the timesteps of one denoiser from the pipeline's scheduler, got {kind}; give a "
            "pipeline with one denoiser, or graphs made by Calibration.graph"
        )
    calibration.tensor("responses")  # refuses one that holds none
    calibration = calibration.preferred(budget)  # type: ignore[attr-defined]  # an `l2c.Calibration`
    blank = CacheGraph.blank(calibration.binding)
    blank = fitted_to(blank, denoiser_of(pipe))
    rows = CalibratedRows(calibration, budget, blank)
    check_scheduler(blank, pipe.scheduler, rows.or_else)
    return rows


def _rung(ladder: Any, budget: float | str | None) -> CacheGraph:
    """Return the graph of a ladder that a budget asks for."""
    if budget is None:
        raise ValueError("a ladder holds graphs of several budgets; say which, budget=0.5 for half of the MACs")
    found: CacheGraph = ladder.rung(budget)
    return found


def _loaded(
    graph: CacheGraph | Mapping[str, CacheGraph] | str | Path, *, two: bool
) -> CacheGraph | Mapping[str, CacheGraph]:
    """Return graphs, read where a path or the name of a bundled one is given."""
    if isinstance(graph, (str, Path)):
        return (CacheGraphs if two else CacheGraph).load(graph)
    if not isinstance(graph, (CacheGraph, Mapping)):
        raise ValueError(
            "graph must be a cache graph, a path or a bundled name, or with budget= a calibration or a ladder, got "
            f"{type(graph).__name__}"
        )
    return CacheGraphs(graph) if isinstance(graph, Mapping) else graph


def remove(pipe_or_model: Any) -> None:
    """Remove the graph: the model computes bit for bit what it did before. Without a graph nothing happens.

    Raises:
        ValueError: if another thread is in a call of a pipeline with the model.

    """
    models = list(denoisers_of(pipe_or_model).values())
    for model in models:
        if root_of(model) is not None:
            check_idle(model, "remove the graph")
    exchange(dict.fromkeys(models, ()))
    EndOfCall.unwatch(pipe_or_model)


@contextmanager
def set_aside(pipe_or_model: Any) -> Iterator[None]:
    """Remove the graph; put it back if the `with` block, which is to apply another one, fails. See `remove`."""
    before = {model: hooks_on(model) for model in denoisers_of(pipe_or_model).values()}
    remove(pipe_or_model)
    try:
        yield
    except BaseException:
        exchange(before)
        if any(before.values()):
            EndOfCall.watch(pipe_or_model)
        raise


@contextmanager
def applied(pipe_or_model: Any, graph: Graphs | Measurements | str | Path, **options: Any) -> Iterator[Any]:
    """Apply a graph or a calibration for the time of a `with` block, yield the pipeline; see `apply`.

    Raises:
        ValueError: if the pipeline has a graph before, see also `apply`.

    """
    if any(root_of(model) is not None for model in denoisers_of(pipe_or_model).values()):
        raise ValueError(
            "the pipeline has a cache graph already, which the end of the with block would remove too; call "
            "l2c.remove first, or l2c.apply the other graph in its place"
        )
    apply(pipe_or_model, graph, **options)
    try:
        yield pipe_or_model
    finally:
        remove(pipe_or_model)


def _hooks_of(
    model: nn.Module,
    pipe: Any,
    rows: Rows,
    correction: Correction | None,
    watch: WeightsWatch | None,
    *,
    any_guidance: bool,
) -> Placed:
    """Return the hooks of a graph for a model's modules, the one for the model itself last."""
    graph = rows.first
    layers = [make_layer(model, name) for name in graph.layers]
    alike = correction is None and not isinstance(rows, CalibratedRows)  # the columns of any graph of these rows
    hooks = _hooks(graph, layers, share=alike and class_name(model) in CHAINED)
    slots = [hooks[layer.module].slots[layer.call] for layer in layers]
    placed: list[tuple[nn.Module, ModelHook, str]] = [(module, hook, LAYER) for module, hook in hooks.items()]
    for layer, slot in zip(layers, slots, strict=True):
        placed += [(module, SilentHook(slot), SILENT) for module in layer.silent]
    hooked = HookedModules(model, placed)

    def upkeep(model: nn.Module, given: Mapping[str, Any]) -> None:
        check_uncached(model, later=True)
        if watch is not None:
            with scaled(model, scale_beside(graph, given)):
                watch.look(model)
        hooked.look(model)

    seen = [getattr(getattr(pipe, "scheduler", None), "timesteps", None)]
    pipe_of, prediction = None if pipe is None else weakref.ref(pipe), prediction_of(getattr(pipe, "scheduler", None))
    schedule = GraphSchedule(rows, pipe_of, seen, prediction=prediction, any_guidance=any_guidance)
    return [*placed, (model, GraphHook(schedule, slots, tuple(hooks.values()), correction, upkeep), ROOT)]


def _check_free(model: nn.Module) -> None:
    """Refuse a model that something else caches, or that another thread is in a call with."""
    check_uncached(model)
    check_idle(model, "apply the graph")


def _hooks(graph: CacheGraph, layers: Sequence[WrappedLayer], *, share: bool) -> dict[nn.Module, LayerHook]:
    """Return a hook per module; if allowed, neighbouring blocks that are always reused together keep one sum.

    Blocks may share a sum where their weights are equal; corrections differ from block to block.
    """
    columns = list(zip(zip(*graph.rows, strict=True), zip(*graph.entry_weights, strict=True), strict=True))
    hooks: dict[nn.Module, LayerHook] = {}
    before: RunHook | None = None
    for index, layer in enumerate(layers):
        if share and isinstance(layer.form, ResidualForm):
            alike = index > 0 and columns[index - 1] == columns[index]
            together = before is not None and alike and _follows(layers[index - 1].name, layer.name)
            hook = RunHook(layer.form, (before.leader or before) if together else None)  # type: ignore[union-attr]
            hook.last = True
            if together:
                before.last = False  # type: ignore[union-attr]
            before, hooks[layer.module] = hook, hook
        elif layer.module not in hooks:
            before, hooks[layer.module] = None, LayerHook(layer.form)
        slot = hooks[layer.module].slots[layer.call] = Slot()
        slot.follows = getattr(hooks[layer.module], "leader", None) is not None
    return hooks


def _follows(name: str, after: str) -> bool:
    """Return whether two names are those of neighbours in one list of blocks."""
    (head, _, index), (head_after, _, index_after) = name.rpartition("."), after.rpartition(".")
    return head == head_after and index.isdigit() and index_after == str(int(index) + 1)
