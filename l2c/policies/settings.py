"""Types and ranges of the policies' options; one sentence where a value is not allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from l2c.graph.predictor import FITTED, HOLD, LINEAR, MAX_OUTPUTS, RULES
from l2c.io.names import chosen
from l2c.io.numbers import LARGEST_SEED
from l2c.io.settings import Flag, Items, Number, Rule, Text, full_name
from l2c.policies.budget import FORMS, OLD_WORDS, evaluations_worth

COUNT = Number(whole=True, at_least=1)
AT_ONCE = Number(whole=True, at_least=1, at_most=10**6)
SEED = Number(whole=True, at_least=0, at_most=LARGEST_SEED)
# What `l2c calibrate` must have measured for a policy; the others need no calibration. See `needs_of`.
NEEDS = {
    **dict.fromkeys(("gram", "best"), ("responses",)),
    **dict.fromkeys(("block_caching", "smoothcache", "top_k"), ("changes",)),
}
NEEDED_SCORES = {"layer_change": NEEDS["top_k"], "response": NEEDS["gram"]}


def needs_of(policy: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what `l2c calibrate` must have measured for a policy with these options; of own scores nothing."""
    if policy == "top_k":
        return NEEDED_SCORES.get(str(options.get("score") or "layer_change"), ())
    return NEEDS.get(policy, ())


ROUTED = Text(choices=("auto", "alternate", "all"))
PERIOD = Number(at_least=1, example=2)  # every n-th evaluation; may be fractional
FROM_0 = Number(whole=True, at_least=0)
ORDER = Number(whole=True, at_least=2, at_most=MAX_OUTPUTS)  # past outputs that a forecast reads
GRAM_REUSES = (HOLD, LINEAR, FITTED)  # predictors that gram chooses from
RULE_REUSE = Text(choices=RULES)
ENDS: dict[str, Rule] = {"first": COUNT, "last": FROM_0}  # evaluations that compute everything
PART = Text(choices=("all", "attn", "mlp"))
TIME = Number(at_least=0, at_most=1000, example=100)


@dataclass(frozen=True)
class BudgetRule(Rule):
    """A budget in one of its three forms; see `policies.budget`."""

    def kind(self) -> str:
        """Return the forms."""
        return FORMS

    def fits(self, value: Any) -> bool:
        """Return whether a value has one of the forms."""
        if not isinstance(value, (int, float, str)):
            return False
        try:
            evaluations_worth(value, 1)
        except (ValueError, OverflowError):
            return False
        return True

    def shown(self, default: Any) -> Any:
        """Return nothing: the forms are their own examples."""
        return None


BUDGET = BudgetRule(optional=True)

OPTIONS: dict[str, dict[str, Rule]] = {
    "interval": {"n": PERIOD, "reuse": RULE_REUSE, **ENDS, "phase": FROM_0, "part": PART},
    "pab": {"n": PERIOD, "start": TIME, "end": TIME},
    "late_first": {"routed": ROUTED, "reuse": RULE_REUSE, **ENDS, "part": PART},
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
    "deepcache": {"outer": FROM_0, "n": PERIOD},
    "faster_diffusion": {"n": PERIOD},
    "budcache": {
        "reuse": RULE_REUSE,
        "steps": FROM_0,
        "climbs": FROM_0,
        "num_trajectories": AT_ONCE,
        "eval_batch_size": AT_ONCE,
        "seed": SEED,
    },
    "l2p": {
        "n": PERIOD,
        "order": ORDER,
        **ENDS,
        "phase": FROM_0,
        "num_trajectories": AT_ONCE,
        "batch_size": AT_ONCE,
        "seed": SEED,
    },
    "gram": {
        "reuses": Items(item=Text(choices=GRAM_REUSES), example=(FITTED,), single=True),
        "order": Number(whole=True, at_least=2, at_most=MAX_OUTPUTS, optional=True, example=3),
        "max_span": Number(whole=True, at_least=1, optional=True, example=4),
        "routed": Text(choices=("all", "alternate")),
        "exchanges": FROM_0,
    },
    "best": {
        "num_evaluations": Items(item=COUNT, nonempty=False, example=(16, 12)),
        "max_span": COUNT,
        "num_trajectories": AT_ONCE,
        "pool": Number(whole=True, at_least=0, at_most=10**6),  # 0 = the first noises alone
        "eval_batch_size": AT_ONCE,
        "exchanges": FROM_0,
        "steps": FROM_0,
        "batch_size": AT_ONCE,
        "learning_rate": Number(above=0, example=0.02),
        "whole_outputs": Flag(),
        "seed": SEED,
    },
}


def check_options(name: str, options: Iterable[str]) -> None:
    """Refuse an unknown policy, or an option that it does not have.

    Raises:
        ValueError: if the policy is unknown, or has no such option.

    """
    chosen("policy", name, OPTIONS)
    allowed = [*OPTIONS[name], "budget"]
    unknown = [key for key in options if key not in allowed]
    if unknown and unknown[0] in OLD_WORDS:
        raise ValueError(f"policy {name} has no option {unknown[0]!r}: it is called {OLD_WORDS[unknown[0]]} now")
    if unknown:
        raise ValueError(f"policy {name} has no option {unknown[0]!r}; its options are {', '.join(allowed)}")


def check_values(name: str, options: Mapping[str, Any], *, prefix: str = "policy") -> None:
    """Refuse values that are not allowed; names are checked by `check_options`.

    Args:
        name: name of the policy.
        options: values by name.
        prefix: prefix of the options in messages.

    Raises:
        ValueError: if a value is not allowed.

    """
    for option, value in options.items():
        if option == "budget":
            BUDGET.check("budget", value)
        elif option in OPTIONS[name]:
            OPTIONS[name][option].check(full_name(prefix, option), value)
