"""A budget: what a graph may cost, in the one word and the three forms that all commands and policies take.

`0.4`, a number up to 1, is a share of the uncached MACs; `2.5x` is a speed-up by MACs, uncached over cached; a number
above 1 is evaluations' worth of MACs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from l2c.graph.statistics import SLACK
from l2c.io.names import quoted
from l2c.io.numbers import scalar, whole_number

Budget: TypeAlias = float | str
FORMS = (
    "a share of the uncached MACs (budget=0.4), a speed-up by MACs (budget=2.5x) or evaluations' worth above 1 "
    "(budget=12.75)"
)
OLD_WORDS = {
    "target": "budget",
    "targets": "budgets",
    "remove": "budget",
    "speed_up": "budget",
    "router.remove": "router.budget",
    "router.speed_up": "router.budget",
}
NEAR = 0.1  # evaluations' worth by which a budget may be missed without a word


class Worth(float):
    """A budget that was read: evaluations' worth of MACs, also below 1; `evaluations_worth` returns it unchanged."""


class BudgetOutOfReach(ValueError):
    """No graph meets the budget."""


def evaluations_worth(budget: Budget, num_evaluations: int) -> Worth:
    """Return a budget in evaluations' worth of MACs.

    Args:
        budget: see the module; a text may hold any of the three forms. A `Worth` is no share, however small.
        num_evaluations: evaluations of the uncached trajectory.

    Raises:
        ValueError: if the budget has none of the three forms; the message names them.

    """
    if isinstance(budget, Worth):
        return budget
    budget, num_evaluations = scalar(budget), whole_number("num_evaluations", num_evaluations, low=1)
    text = str(budget).strip().lower()
    try:
        if isinstance(budget, bool):
            raise ValueError("a truth value is no number")
        number = float(text.removesuffix("x"))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"a budget is {FORMS}, got {quoted(budget)}")
    if text.endswith("x"):
        return Worth(num_evaluations / number)
    return Worth(number * num_evaluations if number <= 1 else number)


def check_reach(worth: float, least: float, num_evaluations: int, reason: str = "", mend: str = "") -> None:
    """Refuse a budget that no graph can meet.

    Args:
        worth: the budget in evaluations' worth of MACs.
        least: the smallest budget within reach, in evaluations' worth of MACs.
        num_evaluations: the largest one, that of the uncached trajectory.
        reason: cause of the limit, in words that follow "out of reach".
        mend: what moves the limit, an imperative clause.

    Raises:
        BudgetOutOfReach: if the budget lies outside; the message gives the range in all three forms.

    """
    if least - SLACK <= worth <= num_evaluations + SLACK:
        return
    # Rounded inwards, so that the ends that are shown are within reach.
    most_speed_up = f"{math.floor(100 * num_evaluations / least) / 100:.2f}x" if least > 0 else "any speed-up"
    share, least = (math.ceil(100 * value - SLACK) / 100 for value in (least / num_evaluations, least))
    raise BudgetOutOfReach(
        f"a budget of {worth:g} evaluations' worth of MACs is out of reach{reason and ' ' + reason}; the reachable "
        f"range is {least:.2f}..{num_evaluations} ({share:.2f}..1 as a share, 1x..{most_speed_up} as a speed-up): "
        f"choose one within{mend and ', '}{mend}"
    )


def rows_in_order(
    entries: Sequence[tuple[int, int]], macs: Sequence[int], num_evaluations: int, to_save: float
) -> list[list[bool]]:
    """Return rows that reuse entries in their order until MACs are saved.

    The last entry is taken if it comes nearer to the budget than leaving it out does: the MACs saved differ from
    `to_save` by at most half of the next entry's.

    Args:
        entries: (evaluation, layer), the first to be reused first.
        macs: MACs of each layer, (L,).
        num_evaluations: number of rows.
        to_save: MACs.

    """
    rows = [[True] * len(macs) for _ in range(num_evaluations)]
    for evaluation, layer in entries:
        if to_save < macs[layer] / 2:
            break
        rows[evaluation][layer] = False
        to_save -= macs[layer]
    return rows
