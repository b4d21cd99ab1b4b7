"""Types and ranges of the policies' options; one sentence where a value is not allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2c.io.settings import Items, Number, Rule, Text, full_name

COUNT = Number(whole=True, at_least=1)
SEED = Number(whole=True, at_least=0, at_most=2**32 - 1)
ROUTED = Text(choices=("auto", "alternate", "all"))
PERIOD = Number(at_least=1, example=2)  # every n-th evaluation; may be fractional
# Evaluations' worth of MACs, or up to 1 a share of them.
BUDGET = Number(above=0, example=12.75, optional=True)

OPTIONS: dict[str, dict[str, Rule]] = {
    "interval": {"n": PERIOD},
    "late_first": {"routed": ROUTED},
    "random": {"seed": SEED, "routed": ROUTED},
    "top_k": {"score": Text(), "routed": ROUTED},
    "block_caching": {
        "delta": Number(at_least=0, example=0.5),
        "granularity": Text(choices=("layer", "block")),
        "max_span": Number(whole=True, at_least=1, optional=True, example=4),
    },
    "smoothcache": {
        "alpha": Number(at_least=0, example=0.18),
        "max_span": COUNT,
        "by": Text(choices=("type", "layer")),
    },
    "deepcache": {"outer": Number(whole=True, at_least=0), "n": PERIOD},
    "faster_diffusion": {"n": PERIOD},
    "gram": {
        "reuses": Items(item=Text(choices=("hold", "linear", "fitted")), example=("fitted",), single=True),
        "max_span": COUNT,
        "routed": Text(choices=("all", "alternate")),
        "exchanges": Number(whole=True, at_least=0),
    },
    "best": {
        "num_evaluations": Items(item=COUNT, nonempty=False, example=(16, 12)),
        "max_span": COUNT,
        "num_trajectories": COUNT,
        "pool": COUNT,
        "judge_batch": COUNT,
        "steps": Number(whole=True, at_least=0),
        "batch_size": COUNT,
        "learning_rate": Number(above=0, example=0.02),
        "seed": SEED,
    },
}


def check_values(name: str, options: Mapping[str, Any], *, prefix: str = "policy") -> None:
    """Refuse values that are not allowed; names are checked by `registry.check_options`.

    Args:
        name: of the policy.
        options: values by name.
        prefix: of the options in messages.

    Raises:
        ValueError: if a value is not allowed.

    """
    for option, value in options.items():
        rule = BUDGET if option == "target" else OPTIONS[name].get(option)
        if rule is not None:
            rule.check("target" if option == "target" else full_name(prefix, option), value)
