"""Expected error of a graph: the first-order prediction times the measured true/predicted ratio."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

import numpy as np

from l2c.calibration.measurements import Measurements
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.statistics import ERROR, SPREAD, UNKNOWN
from l2c.policies.allocation import Array
from l2c.sampling.image_error import standard_error

log = logging.getLogger(__name__)
FEWEST = 4  # trajectories; of 2, expected errors were up to 18 x too small also beside true errors, of 8 up to 3 x
FINER = 2.0  # evaluations for each one measured, or the other way round, up to which an expected error says something
FINER_THAN_TRUE = 1.25  # the same for those at which true errors are known
BEYOND = 2.0  # numbers of evaluations by which a trend is followed outside of those known, as a factor
SLACK = 1e-6  # of these factors, of rounding
LARGEST = math.log(1e12)  # of a ratio's logarithm: numbers of evaluations that lie close together know no trend


def expected_error(change: Array, calibration: Measurements, share: float) -> dict[str, float]:
    """Return the expected mean squared error per pixel of a graph, and its standard error over trajectories.

    The first-order prediction is the squared norm of the summed responses. If the calibration holds true errors, it
    is multiplied by the true/predicted ratio, see `true_over_predicted`.

    Args:
        change: (M,), the sum of all responses.
        calibration: gives the directions per trajectory, the ratios and the number of evaluations.
        share: share of the uncached MACs.

    """
    count = _num_trajectories(calibration, len(change)) or len(change)
    each = np.square(change.astype(np.float64)).reshape(count, -1).sum(axis=1)
    each *= len(each)  # per trajectory
    ratio = true_over_predicted(calibration.corrections, calibration.binding.num_evaluations, share)
    spread = standard_error(each) if len(each) > 1 else 0.0
    return {ERROR: float(ratio * each.mean()), SPREAD: float(ratio * spread)}


def _num_trajectories(calibration: Measurements, num_directions: int) -> int | None:
    """Return of how many trajectories directions are; None where settings that were made by hand do not say."""
    count = calibration.settings.get("num_trajectories")
    num_probes = calibration.settings.get("responses", {}).get("num_probes")
    return num_directions // num_probes if count is None and num_probes is not None else count


def unknown_error(calibration: Measurements, num_directions: int) -> str | None:
    """Return why nothing can be said of the error of a calibration's graphs at its times; None where it can.

    Weights are fitted to the directions that the error is then taken along, so that little is left of it: first-order
    errors were 3 to 36 times too small along 64 directions, hundreds of times along a few. Carried to many more
    evaluations they fall without end; carried to many fewer they are off either way. True errors do neither.

    Args:
        calibration: of the graphs' own times.
        num_directions: M, along which its responses were measured.

    """
    trajectories = _num_trajectories(calibration, num_directions)
    if trajectories is None:
        return (
            "its settings do not say on how many trajectories the calibration was measured; run l2c calibrate again"
        )
    if trajectories < FEWEST:
        many = "one trajectory" if trajectories == 1 else f"{trajectories} trajectories"
        return f"responses of {many} say little of others; calibrate with num_trajectories=8 or more"
    if not calibration.corrections:
        return (
            "without true errors, those that responses expect are 3 to 2,600 times too small; calibrate with "
            "true_errors=8 or more"
        )
    measured = calibration.carried_from
    if measured is None:
        return None
    corrected = [one["num_evaluations"] for one in calibration.corrections]
    most = max(FINER, FINER_THAN_TRUE * max(corrected) / measured)
    least = min(1 / FINER, min(corrected) / measured / FINER_THAN_TRUE)
    count, finer = calibration.binding.num_evaluations, calibration.finer
    if finer > most + SLACK:
        return (
            f"{count} evaluations lie {finer:.3g} x as close in time as the {measured} that were calibrated, and "
            f"beyond {most:.3g} x first-order errors are many times too small; calibrate with at least "
            f"{math.ceil(measured * finer / most)} evaluations"
        )
    if finer < least - SLACK:
        return (
            f"{count} evaluations lie {1 / finer:.3g} x as far apart in time as the {measured} that were calibrated, "
            f"and beyond {1 / least:.3g} x first-order errors are up to 17 times too small or 10 times too large; "
            f"calibrate with at most {math.floor(measured * finer / least)} evaluations"
        )
    return None


def without_unknown(graph: CacheGraph, warned: set[str]) -> CacheGraph:
    """Return a graph whose expected error is None where `with_expected` wrote down why it is not known.

    Args:
        graph: as a policy made it.
        warned: reasons that were given in a warning already; this one is added.

    """
    why = graph.measured.get(UNKNOWN)
    if why is None:
        return graph
    if why not in warned:
        warned.add(why)
        log.warning("the expected error is not known: %s", why)
    return graph.replace(measured={**graph.measured, ERROR: None, SPREAD: None})


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
        return math.exp(_bounded(ratios[0]))
    place = min(max(int(np.searchsorted(counts, wanted)), 1), len(counts) - 1)
    low, high = counts[place - 1], counts[place]
    part = (wanted - low) / (high - low)
    return math.exp(_bounded(ratios[place - 1] + part * (ratios[place] - ratios[place - 1])))


def _bounded(logarithm: float) -> float:
    return min(max(logarithm, -LARGEST), LARGEST)
