"""Expected error of a graph: the first-order prediction times the measured true/predicted ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from l2c.calibration.measurements import Measurements
from l2c.graph.statistics import ERROR, SPREAD
from l2c.policies.allocation import Array
from l2c.sampling.image_error import standard_error

BEYOND = 2.0  # numbers of evaluations by which a trend is followed outside of those known, as a factor


def expected_error(change: Array, calibration: Measurements, share: float) -> dict[str, float]:
    """Return the expected mean squared error per pixel of a graph, and its standard error over trajectories.

    The first-order prediction is the squared norm of the summed responses. If the calibration holds true errors, it
    is multiplied by the true/predicted ratio, see `true_over_predicted`.

    Args:
        change: (M,), the sum of all responses.
        calibration: gives the directions per trajectory, the ratios and the number of evaluations.
        share: share of the uncached MACs.

    """
    of_probes = calibration.settings.get("responses")
    num_probes = int(of_probes.get("num_probes", 1)) if isinstance(of_probes, dict) else 1
    num_probes = num_probes if num_probes > 0 and len(change) % num_probes == 0 else 1
    each = np.square(change.astype(np.float64)).reshape(-1, num_probes).sum(axis=1)
    each *= len(each)  # per trajectory
    ratio = true_over_predicted(calibration.corrections, calibration.binding.num_evaluations, share)
    spread = standard_error(each) if len(each) > 1 else 0.0
    return {ERROR: float(ratio * each.mean()), SPREAD: float(ratio * spread)}


def true_over_predicted(corrections: Iterable[Mapping[str, float]], num_evaluations: int, share: float) -> float:
    """Return the ratio of true to predicted errors at a number of evaluations and a share of the MACs; 1 = not known.

    Its logarithm is interpolated linearly between shares, and between the logarithms of the numbers of evaluations,
    whose trend is followed by a factor of `BEYOND` at most; outside of the known shares the nearest one counts.

    Args:
        corrections: see `calibration_file.CORRECTION`.
        num_evaluations: of the graph.
        share: of the uncached MACs.

    """
    known: dict[float, dict[float, float]] = {}  # by number of evaluations, then by share
    for one in corrections:
        of_count = known.setdefault(math.log(one["num_evaluations"]), {})
        of_count[one["share"]] = math.log(one["true"] / one["predicted"])
    if not known:
        return 1.0
    counts = sorted(known)
    shares = {count: sorted(known[count]) for count in counts}
    ratios = [float(np.interp(share, shares[n], [known[n][at] for at in shares[n]])) for n in counts]
    wanted = min(max(math.log(num_evaluations), counts[0] - math.log(BEYOND)), counts[-1] + math.log(BEYOND))
    if len(counts) == 1:
        return math.exp(ratios[0])
    place = min(max(int(np.searchsorted(counts, wanted)), 1), len(counts) - 1)
    low, high = counts[place - 1], counts[place]
    part = (wanted - low) / (high - low)
    return math.exp(ratios[place - 1] + part * (ratios[place] - ratios[place - 1]))
