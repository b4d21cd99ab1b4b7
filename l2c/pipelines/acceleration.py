"""A pipeline made faster in one call: calibrate, choose, apply, and keep what was found on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from l2c.calibration.calibration_file import VERSION
from l2c.calibration.settings import FORWARD, RESPONSES
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.collection import CacheGraphs
from l2c.graph.given import table
from l2c.graph.layer_names import WHOLE_OUTPUT, ends_in_output, kinds_asked, own_layers
from l2c.io.atomic import check_writable, write_text
from l2c.io.bundled import at_home, cache_folder
from l2c.io.names import near_keywords, shown
from l2c.io.version import code_version
from l2c.pipelines.asked import Asked
from l2c.policies.budget import Budget, check_reach, evaluations_worth
from l2c.policies.calibration import Calibration
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.policies.settings import NEEDS, needs_of
from l2c.sampling.batches import labels_in_turn
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.uncached import cached_like, uncached_like

GRAM = "gram"
AUTO = (GRAM, "block_caching")  # the better one first
REFUSALS = (ValueError, MemoryError, torch.OutOfMemoryError)
MADE_BY = "made_by.txt"
NUM_JUDGED = 4  # new noises that the error is measured on


@near_keywords("arguments of the pipeline's own call go into options={...}")
def accelerate(
    pipe: Any,
    prompts: Sequence[str] | Sequence[int] | str | Path | None = None,
    *,
    budget: Budget = 0.5,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    policy: str | None = None,
    options: Mapping[str, Any] | None = None,
    num_trajectories: int = 8,
    num_probes: int = 8,
    seed: int = 0,
    layers: str | Sequence[str] | None = None,
    folder: str | Path | None = None,
) -> CacheGraph | CacheGraphs:
    """Calibrate a pipeline, make a cache graph for a budget, apply it; found on disk the second time.

    Call the pipeline as usual, with the same guidance scale; `l2c.remove(pipe)` removes the graph. A graph is for one
    number of steps; with `gram`, calls with other steps, resolutions and strengths get graphs of their own.

    Args:
        pipe: a diffusers pipeline.
        prompts: texts, class labels or pictures, or a file with one a line; None = a few built-in ones.
        budget: what the graph may cost: a share of the uncached MACs (0.5), a speed-up by MACs ("2x") or, above 1,
            evaluations' worth.
        num_inference_steps: None = the pipeline's own.
        guidance_scale: means `true_cfg_scale` for Qwen-Image and similar pipelines; None = the pipeline's own.
        policy: a policy's name; None = gram, or block_caching where that is not possible. Where the model passes no
            gradients on or memory is short, gram is calibrated by forward passes, for graphs of the whole output.
        options: further arguments of the pipeline's call, `height` for one; none that another argument here says.
        num_trajectories: trajectories to calibrate on.
        num_probes: with `gram`, backward passes for each of them; 1 takes 6 sampling runs in the place of 13 (2
            forward, 3 between evaluations where the scheduler tells its states there, and the backward ones).
        seed: seed of the noises.
        layers: kinds of layers, `layer`, `block`, `resnet`, or `output`, what the whole model returns, see
            `find_layers`; None = with `gram` the usual layers or the whole output, see `Calibration.graph`.
        folder: where calibrations and graphs are kept; None = `L2C_CACHE`'s, else `l2c` in the user's cache folder.

    Raises:
        ValueError: if the pipeline cannot be calibrated, or no graph reaches the budget.
        FileNotFoundError: if there is no such prompt file.

    """
    from l2c.integrations.diffusers import denoisers_of, modes_kept, set_aside

    denoisers_of(pipe)  # refuses what is no pipeline
    options = {} if options is None else table("options", options)
    settings = policy, options, num_trajectories, num_probes, seed, kinds_asked(layers)
    asked = Asked.of(pipe, prompts, num_inference_steps, guidance_scale, *settings)
    worth = evaluations_worth(budget, asked.steps)
    with set_aside(pipe), modes_kept(pipe):
        place = _place(cache_folder() if folder is None else at_home(folder), asked.key(pipe))
        path, note = place / f"graph_{worth:g}.json", place / f"note_{worth:g}.txt"
        if not (path.is_file() and note.is_file()):
            check_writable(path)
            _make(pipe, asked, budget, path, note)
        kind = CacheGraphs if len(denoisers_of(pipe)) > 1 else CacheGraph
        _apply(pipe, graph := kind.load(path), place, budget)
    tqdm.write(note.read_text(encoding="utf-8").rstrip())
    return graph


def _made_by() -> str:
    return f"{code_version()}, calibrations of version {VERSION}"  # what another version kept is not read


def _place(folder: Path, key: str) -> Path:
    """Return the folder that keeps what this version makes of settings; say so where another version made it."""
    place = folder / f"{key}-{hashlib.sha256(_made_by().encode()).hexdigest()[:8]}"
    others = sorted(folder.glob(f"{key}-*/{MADE_BY}"), key=lambda path: path.stat().st_mtime)
    if others and not place.is_dir():
        theirs = shown(others[-1].read_text(encoding="utf-8", errors="replace"))
        tqdm.write(
            f"made again: what {folder} keeps for these settings is by l2c {theirs}, and this is {_made_by()}; "
            "methods or defaults may differ"
        )
    return place


@torch.inference_mode(False)  # as in measuring, of conditions too
def _make(pipe: Any, asked: Asked, budget: Budget, path: Path, note: Path) -> None:
    """Calibrate where that was not done yet; write the graph, and a note of a few lines for people."""
    from l2c.integrations.diffusers.pipeline_backbone import pipeline_backbone
    from l2c.integrations.diffusers.recorded.turns import graphs_of

    backbone: Any = pipeline_backbone(
        pipe,
        asked.prompts,
        num_evaluations=asked.steps,
        guidance_scale=asked.scale,
        of=asked.layers,
        options=asked.options,
    )
    steps = backbone.own_solver.num_evaluations  # timesteps or sigmas of the call's own count, not its steps
    check_reach(evaluations_worth(budget, steps), 0.0, steps)  # more than all is not found out after calibrating
    sampler = Sampler(backbone, solver="pipeline", num_evaluations=steps, cfg_scale=asked.scale)
    write_text(path.with_name(MADE_BY), _made_by())
    refusals: list[str] = []
    ways = [(name, sampler) for name in (AUTO if asked.policy is None else (asked.policy,))]
    if asked.policy is None and asked.layers is None and sampler.backbone.layer_names != (WHOLE_OUTPUT,):
        whole = uncached_like(sampler, layers=(WHOLE_OUTPUT,))  # for budgets that layers do not reach
        ways.append((AUTO[-1], whole))
    for place, (name, sampler) in enumerate(ways):
        try:
            calibration = _calibration(sampler, asked, path.parent, name, refusals)
            context = PolicyContext.of(sampler, calibration)
            if name == GRAM and calibration is not None:
                graph = calibration.graph(budget, whole_outputs=asked.layers is None)
            else:
                graph = make_graph(name, context, budget=budget)
            break
        except REFUSALS as error:
            if place == len(ways) - 1:
                raise
            refusals.append(f"policy {name} is not possible here: {error}")
    graphs = graphs_of(graph, backbone)
    lines = [*refusals, *_summary(sampler, asked, graph, context)]
    lines[-1] += _in_own_call(pipe, graphs, backbone, asked)
    graphs.save(path)
    write_text(note, "\n".join(lines) + "\n")


def _calibration(
    sampler: Sampler, asked: Asked, folder: Path, policy: str, refusals: list[str]
) -> Calibration | None:
    """Return the calibration of a policy, measured now or found in the folder; append why it is not the usual one."""
    needs = needs_of(policy, {})
    if not needs:
        return None
    path = _file_of(folder, needs, sampler.backbone.layer_names)
    if not path.is_file():
        _reason(path).unlink(missing_ok=True)
        size = 1 if RESPONSES in needs else 4
        how: dict[str, Any] = {"what": needs, "true_errors": NUM_JUDGED, "batch_size": size}
        how |= {"seed": asked.seed, "num_trajectories": asked.num_trajectories}
        probes = {"num_probes": asked.num_probes}
        try:
            calibration = Calibration.measure(sampler, **how, responses=probes)
        except REFUSALS as error:
            if RESPONSES not in needs or asked.layers not in (None, (WHOLE_OUTPUT,)):
                raise
            whole = uncached_like(sampler, layers=(WHOLE_OUTPUT,))
            calibration = Calibration.measure(whole, **how, responses={**probes, "method": FORWARD})
            why, _, _ = str(error).partition(";")
            write_text(_reason(path), f"calibrated by forward passes, for graphs of the whole output: {why}\n")
        calibration.save(path)
    if _reason(path).is_file():  # also for the next budget
        refusals.append(_reason(path).read_text(encoding="utf-8").rstrip())
    return Calibration.load(path)


def _reason(path: Path) -> Path:
    """Return the file that says why a calibration is not the usual one."""
    return path.with_suffix(".txt")


def _file_of(folder: Path, needs: Sequence[str], layers: Sequence[str]) -> Path:
    """Return the file of a calibration; responses of layers hold those of the whole output too."""
    alone = RESPONSES not in needs and tuple(layers) == (WHOLE_OUTPUT,)
    return folder / f"calibration_{'_'.join([*needs, *(layers if alone else ())])}.safetensors"


def _apply(pipe: Any, graph: CacheGraph | CacheGraphs, folder: Path, budget: Budget) -> None:
    """Apply a graph; its calibration instead, where that makes such graphs for other steps too."""
    from l2c.integrations.diffusers import apply

    if isinstance(graph, CacheGraph) and graph.provenance.get("method") == GRAM:
        calibration = Calibration.load(_file_of(folder, NEEDS[GRAM], graph.layers))
        if calibration.grid is not None:
            both = ends_in_output(graph.layers)
            apply(pipe, calibration if both else calibration.part(graph.layers), budget=budget)
            return
    apply(pipe, graph)


@torch.no_grad()
def _summary(sampler: Sampler, asked: Asked, graph: CacheGraph, context: PolicyContext) -> list[str]:
    """Return two lines: what is saved, and the error on noises that the graph was not made on."""
    backbone: Any = sampler.backbone
    noise = seeded_noise(backbone.input_shape, asked.seed, NUM_JUDGED, first=asked.num_trajectories)
    labels = labels_in_turn(len(asked.prompts), NUM_JUDGED)
    plain = sampler.sample(labels, noise=noise, progress=True)
    cached = cached_like(sampler, graph).sample(labels, noise=noise, progress=True)
    error = float((cached - plain).norm() / plain.norm())
    share = context.cost.evaluations_worth(graph) / graph.num_evaluations
    return [
        f"{graph.provenance.get('method', 'graph')}: {_reuse(graph)}; {100 * share:.0f} % of the denoiser's MACs "
        "are left",
        f"latents of the same noise differ by {100 * error:.1f} % (L2, relative; {NUM_JUDGED} new noises)",
    ]


def _in_own_call(pipe: Any, graphs: CacheGraph | CacheGraphs, backbone: Any, asked: Asked) -> str:
    """Return the error in a call of the pipeline itself, in words; or why it was not measured.

    It is that of what is foretold, and of what the calibration leaves out: further branches, an inpainted picture.
    """
    from l2c.integrations.diffusers import applied
    from l2c.integrations.diffusers.recorded.own_call import last_sample

    call = getattr(backbone, "network", backbone).own_call
    try:
        plain = last_sample(pipe, call, asked.seed)
        with applied(pipe, graphs):
            cached = last_sample(pipe, call, asked.seed)
    except REFUSALS as error:
        return f"; a call of the pipeline itself could not be measured: {' '.join(str(error).split())}"
    return f", in a call of the pipeline itself by {100 * float((cached - plain).norm() / plain.norm()):.1f} %"


def _reuse(graph: CacheGraph) -> str:
    """Return what a graph reuses, in words."""
    count, layers = graph.num_evaluations, own_layers(graph.layers)
    said, whole = [], 0
    if layers != graph.layers:
        whole = sum(not row[-1] for row in graph.rows)
        said.append(f"{whole} of {count} evaluations reuse the whole output")
    if layers:
        reused = sum(map(len, graph.reused)) - whole
        said.append(
            f"{reused} of {(count - whole) * len(layers)} layers {'of the others ' if whole else ''}are reused"
        )
    return ", ".join(said)
