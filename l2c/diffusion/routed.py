"""The evaluations that a policy may route."""

from __future__ import annotations

from collections.abc import Sequence


def routed_evaluations(steps: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the evaluations that Learning-to-Cache routes, for a solver's steps.

    Every routed evaluation reuses from the one before it, which computes everything. One evaluation a step
    (DDIM, DDPM, 2M): every second one, such that the last is routed; of an odd number the first two are full.
    Two evaluations a step (DPM-Solver 2S): the first evaluation of every step but the first.
    """
    if any(len(step) > 1 for step in steps):
        return tuple(step[0] for step in steps[1:])
    return tuple(e for e in range(1, len(steps)) if (len(steps) - 1 - e) % 2 == 0)
