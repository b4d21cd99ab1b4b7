"""Whether the methods of a comparison fit its sampler and noises: asked before any of them is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.evaluation.dynamic import check_middle
from l2c.evaluation.dynamic_methods import at_budget, blocks_outside
from l2c.evaluation.method_settings import DYNAMIC_OPTIONS, FEWER_STEPS
from l2c.io.settings import full_name
from l2c.policies.context import PolicyContext
from l2c.policies.registry import POLICIES, with_defaults

DETERMINISTIC = ("gram", "best", "budcache")  # policies that compare images from the same noise


def check_for(
    methods: Mapping[str, Mapping[str, Any] | None], context: PolicyContext, *, seed: int, measured_to: str
) -> None:
    """Refuse methods that cannot be compared on a sampler and its noises, before any of them is measured.

    Args:
        methods: the options of each, by its name in the comparison.
        context: of the uncached sampler.
        seed: seed of the noises compared on.
        measured_to: what errors are measured to, see `ComparisonSettings`.

    Raises:
        ValueError: if the solver adds noise where there must be none, a method finds its settings on the noises
            compared on, or leaves no block to reuse.

    """
    assert context.sampler is not None
    if measured_to == "ode":
        context.sampler.solver.check_deterministic("measured_to=ode compares with trajectories without noise")
    for method, given in methods.items():
        options = dict(given or {})
        policy, prefix = options.pop("policy", method), full_name("methods", method)
        if policy == FEWER_STEPS:
            continue
        dynamic = policy in DYNAMIC_OPTIONS
        known = with_defaults(at_budget if dynamic else POLICIES[policy], options)
        if "num_trajectories" in known and known["seed"] == seed:
            raise ValueError(
                f"{prefix}.seed={seed} is that of the noises that methods are compared on, and {policy} finds its "
                f"settings on its own; take another seed for it or for the comparison (seed={seed})"
            )
        if policy in DETERMINISTIC:
            context.deterministic_sampler(policy)
        if dynamic:
            front, back = blocks_outside(policy, options)
            check_middle(front, back, context.sampler.backbone.num_layers // 2, f"{prefix}: ")
