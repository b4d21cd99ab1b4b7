"""Settings of the methods of a comparison: policies, fewer steps, other solvers, dynamic methods.

A method is named by `policy` among its options, or by its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.graph.checks import MAX_EVALUATIONS
from l2c.io.names import chosen
from l2c.io.settings import Number, Rule, Text, full_name
from l2c.policies.settings import COUNT, FROM_0, NEEDS, OPTIONS, SEED, check_options, check_values
from l2c.sampling.solver_settings import SOLVER_NAMES

FEWER_STEPS = "fewer_steps"
BY_RESPONSES = tuple(
    name for name, needs in NEEDS.items() if "responses" in needs
)  # made anew from each calibration; may have another solver
EVALUATIONS = Number(whole=True, at_least=1, at_most=MAX_EVALUATIONS)
SHARE = Number(at_least=0, at_most=1)
OTHER_SOLVER: dict[str, Rule] = {
    "solver": Text(choices=tuple(name for name in SOLVER_NAMES if name != "pipeline")),
    "num_evaluations": EVALUATIONS,  # of that solver, uncached
}
_SEARCHED: dict[str, Rule] = {"num_trajectories": COUNT, "seed": SEED, "steps": COUNT}  # how a threshold is found
DYNAMIC_OPTIONS: dict[str, dict[str, Rule]] = {
    "first_block_cache": _SEARCHED,
    "dbcache": {"front": COUNT, "back": FROM_0, "warmup": FROM_0, **_SEARCHED},
    "dbcache_taylor": {"front": COUNT, "back": FROM_0, "warmup": FROM_0, **_SEARCHED},
    "teacache": {"degree": Number(whole=True, at_least=1, at_most=8), **_SEARCHED},
    "magcache": {"max_skips": COUNT, "retention": SHARE, **_SEARCHED},
}
METHODS = (FEWER_STEPS, *OPTIONS, *DYNAMIC_OPTIONS)


def check_method(method: str, given: Mapping[str, Any], *, measured_to: str) -> None:
    """Refuse a method that does not exist, an option that it does not have, or a value that is not allowed.

    Args:
        method: its name in the comparison.
        given: its options.
        measured_to: what errors are measured to, see `ComparisonSettings`.

    Raises:
        ValueError: if the method or an option does not exist, or a value is not allowed; one sentence.

    """
    options = {str(name): value for name, value in given.items()}
    policy = chosen("method", options.pop("policy", method), METHODS)
    prefix = full_name("methods", method)
    if policy == FEWER_STEPS:
        _check(prefix, options, {"solver": OTHER_SOLVER["solver"]})
    elif policy in DYNAMIC_OPTIONS:
        _check(prefix, options, DYNAMIC_OPTIONS[policy])
    else:
        if "solver" in options and policy in BY_RESPONSES:
            _check(prefix, {name: options.pop(name) for name in OTHER_SOLVER if name in options}, OTHER_SOLVER)
        check_options(policy, options)
        check_values(policy, options, prefix=prefix)
    if "solver" in given and measured_to != "ode":
        raise ValueError(
            f"{prefix} has another solver, whose images differ from the uncached ones; compare it by the distance to "
            "the solution of the ODE: measured_to=ode"
        )


def _check(prefix: str, options: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    for name, value in options.items():
        if name not in rules:
            raise ValueError(f"{prefix} has no option {name!r}; its options are {', '.join(rules)}")
        rules[name].check(full_name(prefix, name), value)
