"""Reuse entries in some order until the budget is met: by time, at random, by a score."""

from __future__ import annotations

from l2c.graph import CacheGraph
from l2c.policies.problem import Problem
from l2c.policies.random_layers import random_layers

SCORES = ("layer_change",)


def late_first(problem: Problem, *, target: float, routed: str = "auto") -> CacheGraph:
    """Reuse the noisiest routed evaluations whole, the last one in part."""
    worth = problem.evaluations(target)
    evaluations = problem.routed(routed, worth)
    entries = [(e, layer) for e in evaluations for layer in range(problem.blank.num_layers)]
    return problem.graph(problem.in_order(entries, worth), "late_first", target=worth, routed=routed)


def random(problem: Problem, *, target: float, seed: int = 0, routed: str = "auto") -> CacheGraph:
    """Reuse random layers of the routed evaluations."""
    worth = problem.evaluations(target)
    like = problem.blank.replace(routed=problem.routed(routed, worth))
    drawn = random_layers(like, problem.cost, seed=seed, evaluations_worth=worth)
    return problem.graph(drawn.rows, "random", target=worth, seed=seed, routed=routed)


def top_k(problem: Problem, *, target: float, score: str = "layer_change", routed: str = "auto") -> CacheGraph:
    """Reuse the entries with the smallest score, the relative L1 change since the evaluation before for one."""
    if score not in SCORES:
        raise ValueError(f"unknown score {score!r}; known are {', '.join(SCORES)}")
    worth = problem.evaluations(target)
    scores = problem.statistics().tensor(score)[0]  # (E, L)
    entries = [(e, layer) for e in problem.routed(routed, worth) for layer in range(problem.blank.num_layers)]
    entries.sort(key=lambda entry: float(scores[entry]))
    return problem.graph(problem.in_order(entries, worth), "top_k", target=worth, score=score, routed=routed)
