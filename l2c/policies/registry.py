"""Names to policies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from l2c.graph.cache_graph import CacheGraph
from l2c.io.names import near_names
from l2c.policies.best import best
from l2c.policies.block_caching import block_caching
from l2c.policies.context import Problem
from l2c.policies.gram import gram
from l2c.policies.interval import deepcache, faster_diffusion, interval
from l2c.policies.ranking import late_first, random, top_k
from l2c.policies.settings import check_values
from l2c.policies.smoothcache import smoothcache

POLICIES: dict[str, Callable[..., CacheGraph]] = {
    policy.__name__: policy
    for policy in (
        interval,
        late_first,
        random,
        top_k,
        block_caching,
        smoothcache,
        deepcache,
        faster_diffusion,
        gram,
        best,
    )
}


def check_options(name: str, options: Iterable[str]) -> None:
    """Refuse an unknown policy, or an option that it has not.

    Raises:
        ValueError: so it is.

    """
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; {near_names(name, list(POLICIES))}")
    allowed = [key for key in inspect.signature(POLICIES[name]).parameters if key != "problem"]
    unknown = [key for key in options if key not in allowed]
    if unknown:
        raise ValueError(f"policy {name} has no option {unknown[0]!r}; its options are {', '.join(allowed)}")


def make_graph(name: str, problem: Problem, **options: Any) -> CacheGraph:
    """Return the graph of a policy.

    Args:
        name: one of `POLICIES`.
        problem: backbone, sampler, costs and statistics.
        options: of that policy; `target` is a budget in evaluations' worth of MACs, or up to 1 as a share.

    Raises:
        ValueError: an unknown policy or option, a budget out of reach, missing statistics.

    """
    check_options(name, options)
    check_values(name, options)
    required = [
        key
        for key, parameter in inspect.signature(POLICIES[name]).parameters.items()
        if key != "problem" and parameter.default is inspect.Parameter.empty and options.get(key) is None
    ]
    if required:
        raise ValueError(f"policy {name} needs {required[0]}; say {required[0]}=12.75 for evaluations' worth of MACs")
    return POLICIES[name](problem, **options)
