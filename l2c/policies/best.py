"""The best graph that we know of at a budget: gram proposes, true errors choose, the image's gradient finishes."""

from __future__ import annotations

import math

import torch
from tqdm.auto import tqdm

from l2c.graph import FITTED, HOLD, LINEAR, CacheGraph
from l2c.policies.gram import gram
from l2c.policies.judge import Judge
from l2c.policies.problem import Problem
from l2c.sampling.correction import reused_entries
from l2c.sampling.gradients import gradients_through
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.sampling.unrolled import image_loss, unroll, with_slopes

STARTS = ((HOLD,), (HOLD, LINEAR), (FITTED,))


def best(
    problem: Problem,
    *,
    target: float,
    max_span: int = 6,
    num_trajectories: int = 64,
    pool: int = 512,
    judge_batch: int = 64,
    steps: int = 50,
    batch_size: int = 8,
    learning_rate: float = 0.02,
    seed: int = 7,
) -> CacheGraph:
    """Return `gram`'s graph of least true error among several spans and ways of reuse, its slopes then trained.

    Args:
        problem: with `responses` among its statistics and the sampler itself.
        target: budget in evaluations' worth of MACs, or a share of them.
        max_span: evaluations in a row that a layer may be reused.
        num_trajectories: calibration noises that graphs are judged on.
        pool: noises of which those are chosen; see `Judge`.
        judge_batch: of both, how many at a time.
        steps: of training, each through the whole cached trajectory of a batch; 0 = none.
        batch_size: trajectories per step.
        learning_rate: of the slopes.
        seed: of the noises; evaluation uses others.

    Raises:
        ValueError: the budget is out of reach, or the solver adds noise of its own.

    """
    assert problem.sampler is not None
    worth = problem.evaluations(target)
    if problem.sampler.solver.stochastic:
        raise ValueError(
            f"policy best compares images from the same noise, but {problem.blank.solver} adds noise of its own; "
            "take a deterministic solver (ddim with eta 0, dpm_solver_2s, dpm_solver_2m)"
        )
    judge = Judge.of(problem.sampler, num_trajectories, seed, pool=pool, batch_size=judge_batch)
    start = _best_start(problem, judge, worth, max_span)
    slopes = torch.tensor([start.slopes[e][layer] for e, layer in reused_entries(start)])
    trained = _train_slopes(problem.sampler, start, slopes, steps, batch_size, learning_rate, seed, pool)
    candidates = [start, with_slopes(start, trained)] if steps else [start]
    chosen = min(candidates, key=judge.error)
    settings = {"target": worth, "max_span": max_span, "num_trajectories": num_trajectories, "pool": pool}
    provenance = {**start.provenance, "method": "best", "hyperparameters": {**settings, "steps": steps, "seed": seed}}
    return chosen.replace(provenance=provenance)


def _best_start(problem: Problem, judge: Judge, worth: float, max_span: int) -> CacheGraph:
    """Return the graph of gram with the least true error."""
    refusal: ValueError | None = None
    found: list[tuple[float, int, CacheGraph]] = []
    kinds = [(reuses, max_span) for reuses in STARTS] + [(STARTS[-1], span) for span in range(1, max_span)]
    for reuses, span in tqdm(kinds, desc="starts", unit="graph"):
        try:
            graph = gram(problem, target=worth, reuses=reuses, max_span=span)
        except ValueError as error:  # so short spans cannot save that much
            refusal = error
            continue
        found.append((judge.error(graph), len(found), graph))
    if not found:
        assert refusal is not None
        raise refusal
    return min(found)[2]


def _train_slopes(
    sampler: Sampler,
    graph: CacheGraph,
    slopes: torch.Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    first: int,
) -> torch.Tensor:
    """Return slopes (R,) after some steps of Adam on the error of the final image, on noises `first` and on."""
    backbone = sampler.backbone
    device = next(backbone.parameters()).device
    slopes = slopes.to(device).requires_grad_(True)
    optimizer = torch.optim.Adam([slopes], lr=learning_rate, betas=(0.9, 0.99))
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5 * (1 + math.cos(math.pi * i / max(steps, 1))))
    for step in tqdm(range(steps), desc="training slopes", unit="step"):
        begin = first + step * batch_size
        noise = seeded_noise(backbone.input_shape, seed, batch_size, first=begin).to(device)
        count = backbone.num_labels
        y = torch.arange(begin, begin + batch_size, device=device) % count if count else None
        with gradients_through(sampler.solver):
            images, _ = unroll(sampler, graph, noise, y, slopes)
            loss, _ = image_loss(images, sampler.sample(y, noise=noise))
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        cosine.step()
    return slopes.detach().cpu()
