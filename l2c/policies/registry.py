"""Policies by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from l2c.graph.cache_graph import CacheGraph
from l2c.policies.best import best
from l2c.policies.budget import FORMS
from l2c.policies.context import PolicyContext, check_context
from l2c.policies.expected_error import without_unknown
from l2c.policies.gram import gram
from l2c.policies.methods.block_caching import block_caching
from l2c.policies.methods.budcache import budcache
from l2c.policies.methods.interval import deepcache, faster_diffusion, interval, pab
from l2c.policies.methods.l2p import l2p
from l2c.policies.methods.ranking import late_first, random, top_k
from l2c.policies.methods.smoothcache import smoothcache
from l2c.policies.settings import check_options, check_values, needs_of

POLICIES: dict[str, Callable[..., CacheGraph]] = {
    policy.__name__: policy
    for policy in (
        interval,
        pab,
        late_first,
        random,
        top_k,
        block_caching,
        smoothcache,
        deepcache,
        faster_diffusion,
        budcache,
        l2p,
        gram,
        best,
    )
}

# These look at shapes alone: their graphs fit any weights, and need none to be made.
UNMEASURED = ("interval", "pab", "late_first", "random", "deepcache", "faster_diffusion")


@torch.inference_mode(False)  # as in measuring
def make_graph(name: str, context: PolicyContext, **options: Any) -> CacheGraph:
    """Return the graph of a policy.

    Args:
        name: one of `POLICIES`.
        context: backbone, sampler, costs and calibration.
        options: options of that policy; for `budget` see `policies.budget`.

    Raises:
        ValueError: if the policy or an option is unknown, the budget is out of reach, or the calibration is missing.

    """
    check_options(name, options)
    check_values(name, options)
    needs = needs_of(name, options)
    if needs and check_context(context).calibration is None:
        raise ValueError(
            f"policy {name} needs a calibration; run l2c calibrate measure=[{','.join(needs)}] and pass "
            "calibration=PATH"
        )
    required = [
        key
        for key, parameter in inspect.signature(POLICIES[name]).parameters.items()
        if key != "context" and parameter.default is inspect.Parameter.empty and options.get(key) is None
    ]
    if required:
        raise ValueError(f"policy {name} needs a {required[0]}: give {FORMS}")
    graph = POLICIES[name](check_context(context).for_any_weights() if name in UNMEASURED else context, **options)
    return without_unknown(graph, set())


def with_defaults(policy: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a policy, those that are left out at their defaults."""
    known = inspect.signature(policy).parameters.values()
    return {**{one.name: one.default for one in known if one.default is not one.empty}, **options}
