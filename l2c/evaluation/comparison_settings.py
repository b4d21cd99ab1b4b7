"""Settings of a comparison of many methods at several budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from l2c.io.numbers import LARGEST_SEED
from l2c.io.settings import Anything, Items, Settings, Table, Text, flag, ruled, text, whole
from l2c.policies.budget import Budget
from l2c.policies.settings import BudgetRule

TARGETS = ("uncached", "ode")
ODE_EVALUATIONS = 200  # after which more of them move the images far less than any method here does


@dataclass(frozen=True)
class ComparisonSettings(Settings):
    """Methods, budgets and noises.

    Attributes:
        calibration: files of calibrations, or glob patterns of them; one seed each.
        budgets: each in one of the forms of `policies.budget`.
        methods: options of a method by its name, see `method_settings`; None = its defaults, False = left out.
        measured_to: images that errors are measured to: those of the `uncached` sampler, or those of the solution of
            the `ode`, which the same solver gives with 200 evaluations.
        graphs: glob patterns of trained graphs by name; one seed each.
        num_images: noises that methods are compared on.
        batch_size: images at a time.
        seed: seed of the noise.
        num_seeds: draws of random methods.
        timing_batch: images in the batch that is timed.
        timing_repetitions: rounds of the timing.
        any_version: goes on with cells that another version of this package has measured.

    """

    calibration: str | Sequence[str] | None = ruled(
        Items(item=Text(), single=True, optional=True, nonempty=False), None
    )
    budgets: Sequence[Budget] = ruled(Items(item=BudgetRule(), example=(12.75, "2.5x")), [15.15, 12.75, 8])
    methods: Mapping[str, Any] = ruled(Anything(), {})
    measured_to: str = text("uncached", choices=TARGETS)
    graphs: Mapping[str, str] | None = ruled(Table(item=Text(), optional=True), None)
    num_images: int = whole(1000, at_least=2, at_most=10**6)
    batch_size: int = whole(100, at_least=1, at_most=10**6)
    seed: int = whole(1000, at_least=0, at_most=LARGEST_SEED)
    num_seeds: int = whole(3, at_least=1, at_most=1000)
    timing_batch: int = whole(16, at_least=1, at_most=10**6)
    timing_repetitions: int = whole(5, at_least=1)
    any_version: bool = flag(False)

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """Options of the methods by their names, those aside that are left out."""
        return {name: dict(given or {}) for name, given in self.methods.items() if given is not False}
