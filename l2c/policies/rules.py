"""Options of the fixed rules: the evaluations that always compute, the layers that are reused, the predictor.

`hold` is FORA's reuse, `taylor1` and `taylor2` are TaylorSeer's forecasts by evaluations, `foca` is FoCa's, `linear`
is the line in t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from l2c.graph.layer_names import layers_of
from l2c.graph.predictor import HOLD, stand_ins
from l2c.policies.context import PolicyContext
from l2c.policies.settings import PART, RULE_REUSE


@dataclass(frozen=True)
class FixedRule:
    """The options that every fixed rule has.

    Attributes:
        reuse: `hold`, `linear` (in t), `taylor1`, `taylor2` or `foca` (by evaluations).
        first: evaluations at the start that compute everything, at least 1.
        last: evaluations at the end that compute everything.
        part: layers that are reused: `all`, `attn` or `mlp`.

    """

    reuse: str = HOLD
    first: int = 1
    last: int = 0
    part: str = "all"

    def check(self, num_evaluations: int) -> None:
        """Refuse options that do not exist, or leave no evaluation to reuse in.

        Raises:
            ValueError: if an option does not exist or is out of range.

        """
        RULE_REUSE.check("reuse", self.reuse)
        PART.check("part", self.part)
        if self.first < 1 or self.last < 0 or self.first + self.last > num_evaluations:
            raise ValueError(
                f"first must be at least 1, last at least 0, and both together at most the {num_evaluations} "
                f"evaluations; got first={self.first} and last={self.last}"
            )

    def said(self) -> dict[str, Any]:
        """Return the options that are not the defaults, for a graph's provenance."""
        options = {option.name: (getattr(self, option.name), option.default) for option in fields(self)}
        return {name: value for name, (value, default) in options.items() if value != default}

    def allows(self, evaluation: int, num_evaluations: int) -> bool:
        """Return whether an evaluation may reuse."""
        return self.first <= evaluation < num_evaluations - self.last

    def layers(self, names: Sequence[str]) -> set[int]:
        """Return the layers that are reused.

        Raises:
            ValueError: if the backbone has no layer of that kind.

        """
        found = layers_of(self.part, names)
        if not found:
            raise ValueError(f"part={self.part} names no layer of this backbone; take part=all")
        return found

    def stand_ins(self, context: PolicyContext, rows: Sequence[Sequence[bool]]) -> dict[str, Any]:
        """Return the predictors of the entries that rows reuse, as `reuse` and `weights` of a graph.

        Outputs are held if the solver adds noise, because a forecast would extrapolate the noise.
        """
        return {} if self.reuse == HOLD or context.stochastic else stand_ins(rows, self.reuse)
