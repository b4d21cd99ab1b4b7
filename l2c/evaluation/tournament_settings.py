"""Settings of a comparison of many methods at several budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from l2c.io.settings import Anything, Items, Number, Settings, Table, Text, ruled, whole

FEWER_STEPS = "fewer_steps"


@dataclass(frozen=True)
class TournamentSettings(Settings):
    """Methods, budgets and noises.

    Attributes:
        statistics: files of statistics, or glob patterns of them; one seed each.
        targets: budgets: evaluations' worth of MACs, or up to 1 shares of them.
        methods: options of a policy by the method's name; None = its defaults, False = left out.
        graphs: glob patterns of trained graphs by name; one seed each.
        num_images: noises that methods are compared on.
        batch_size: images at a time.
        seed: of the noise.
        num_seeds: draws of random methods.
        timing_batch: images in the batch that is timed.
        timing_repetitions: rounds of the timing.

    """

    statistics: str | Sequence[str] | None = ruled(
        Items(item=Text(), single=True, optional=True, nonempty=False), None
    )
    targets: Sequence[float] = ruled(Items(item=Number(above=0), example=(12.75, 8)), [12.75])
    methods: Mapping[str, Any] = ruled(Anything(), {})
    graphs: Mapping[str, str] | None = ruled(Table(item=Text(), optional=True), None)
    num_images: int = whole(1000, at_least=2)
    batch_size: int = whole(100, at_least=1)
    seed: int = whole(1000, at_least=0, at_most=2**32 - 1)
    num_seeds: int = whole(3, at_least=1)
    timing_batch: int = whole(16, at_least=1)
    timing_repetitions: int = whole(5, at_least=1)
