"""BudCache (arXiv 2606.13496): which whole evaluations compute, searched for by the true error of the final image.

Simulated annealing moves one computed evaluation at a time, hill climbing finishes; the number of computed
evaluations is what the budget pays for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from tqdm.auto import tqdm

from l2c.graph.cache_graph import CacheGraph
from l2c.graph.predictor import HOLD
from l2c.io.seeds import Stream
from l2c.policies.budget import Budget
from l2c.policies.context import PolicyContext, policy
from l2c.policies.rules import FixedRule
from l2c.policies.true_error import TrueError, check_finite

HOT, COLD = 0.5, 0.02  # temperatures at the start and the end, in units of the logarithm of the error
SLACK = 0.02  # evaluations' worth that the graph may take beyond the budget
Chosen: TypeAlias = tuple[int, ...]  # the evaluations that compute, in order
Errors: TypeAlias = Callable[[Chosen], float]


@policy
def budcache(
    context: PolicyContext,
    *,
    budget: Budget,
    reuse: str = HOLD,
    steps: int = 60,
    climbs: int = 40,
    num_trajectories: int = 16,
    eval_batch_size: int = 64,
    seed: int = 7,
) -> CacheGraph:
    """Return the graph of the whole evaluations whose computing has the least true error found.

    Args:
        context: a context with the sampler.
        budget: a share of the uncached MACs, a speed-up or evaluations' worth, see `policies.budget`.
        reuse: predictor: `hold` (published), `linear`, `taylor1`, `taylor2` or `foca`.
        steps: graphs that simulated annealing tries.
        climbs: graphs that hill climbing tries at most.
        num_trajectories: noises that true errors are measured on.
        eval_batch_size: noises sampled at a time.
        seed: seed of the noises and of the search.

    Raises:
        ValueError: if the budget is out of reach, the solver adds noise of its own, or no graph draws finite images.

    """
    rule = FixedRule(reuse)
    rule.check(context.blank.num_evaluations)
    worth, count = context.evaluations(budget), context.blank.num_evaluations
    sampler = context.deterministic_sampler("budcache")
    num_computed = min(count, count - math.ceil((count - worth - SLACK) / context.cost.removable))
    true_error = TrueError.of(sampler, num_trajectories, seed, pool=0, batch_size=eval_batch_size)
    settings: dict[str, Any] = {"budget": worth, "steps": steps, "climbs": climbs, "seed": seed, "rule": rule.said()}
    known: dict[Chosen, float] = {}

    def graph_of(chosen: Chosen) -> CacheGraph:
        rows = [[e in chosen] * context.blank.num_layers for e in range(count)]
        return context.graph(rows, "budcache", **rule.stand_ins(context, rows), **settings)

    def error(chosen: Chosen) -> float:
        if chosen not in known:
            known[chosen] = true_error.error(graph_of(chosen))
        return known[chosen]

    best = tuple(sorted({round(i * count / num_computed) for i in range(num_computed)}))
    if 1 < num_computed < count:
        random = Stream("search of computed evaluations", seed)
        best = _annealed(best, error, random, count, steps)
        best = _climbed(best, error, count, climbs)
        check_finite(error(best))
    return graph_of(best)


def _annealed(chosen: Chosen, error: Errors, random: Stream, count: int, steps: int) -> Chosen:
    """Return the best of the choices that simulated annealing passes."""
    best = chosen
    for step in tqdm(range(steps), desc="annealing", unit="graph"):
        temperature = HOT * (COLD / HOT) ** (step / max(steps - 1, 1))
        moves = list(_moves(chosen, count, farthest=count))
        trial = moves[int(random.permutation(len(moves))[0])]
        worse = math.log(max(error(trial), 1e-30)) - math.log(max(error(chosen), 1e-30))
        if worse <= 0 or float(random.uniform(1)) < math.exp(-worse / temperature):
            chosen = trial
        best = min(best, chosen, key=error)
    return best


def _climbed(chosen: Chosen, error: Errors, count: int, climbs: int) -> Chosen:
    """Return the choice that no move of one evaluation by one makes better, or where `climbs` tries have ended."""
    tried = 0
    while True:
        for trial in _moves(chosen, count, farthest=1):
            tried += 1
            if tried > climbs:
                return chosen
            if error(trial) < error(chosen):
                chosen = trial
                break
        else:
            return chosen


def _moves(chosen: Chosen, count: int, *, farthest: int) -> Iterator[Chosen]:
    """Yield the choices in which one evaluation but the first has moved to a free place nearby."""
    for e in chosen[1:]:
        for other in range(max(1, e - farthest), min(count, e + farthest + 1)):
            if other not in chosen:
                yield tuple(sorted({*chosen, other} - {e}))
