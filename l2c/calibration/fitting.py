"""Weights of past outputs whose responses add up to the smallest change of the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from l2c.graph.predictor import Weights, weights_of

SLOPES = (-1.0, 4.0)  # fitted slopes are kept within
RIDGE = 1e-4  # of the mean square of the differences that more than two outputs are fitted with


class Fits:
    """Fitted weights of the outputs that each entry may read; inner products of its responses are taken once.

    Args:
        responses: (E, L, A, M), see `measure_responses`.

    """

    def __init__(self, responses: npt.NDArray[np.float32]) -> None:
        self._responses = responses
        self._products: dict[tuple[int, int], npt.NDArray[np.float64]] = {}

    def weights(self, e: int, layer: int, ages: Sequence[int]) -> Weights:
        """Return the weights of the outputs `ages` evaluations before, the last one first; see `fitted_weights`."""
        products = self._products.get((e, layer))
        if products is None:
            response = self._responses[e, layer].astype(np.float64)  # (A, M)
            products = self._products[e, layer] = response @ response.T
        return fitted_weights([[products.item(i - 1, j - 1) for j in ages] for i in ages])


def fitted_weights(products: Sequence[Sequence[float]]) -> Weights:
    """Return the weights of past outputs whose responses add up to the smallest change of the image.

    Two outputs have the closed form of a slope, kept within `SLOPES`. More of them lie nearly on a line, so that
    their slopes s, `held + sum_j s_j (held - older_j)`, are found by least squares with a ridge.

    Args:
        products: (K, K), inner products of the responses to the last computed output and to those before it, the
            newer first; K is 2..4.

    """
    (held, *others), number = products[0], len(products) - 1
    aims = [other - held for other in others]  # -(held - older_j) . held
    gram = [[-aims[j] - others[i] + products[i + 1][j + 1] for j in range(number)] for i in range(number)]
    if number == 1:
        slope = aims[0] / max(gram[0][0], 1e-30)
        return weights_of(min(max(slope, SLOPES[0]), SLOPES[1]))
    ridge = RIDGE * sum(gram[i][i] for i in range(number)) / number + 1e-30
    for i in range(number):
        gram[i][i] += ridge
    if number == 2:  # as below, without the overhead of arrays
        (a, b), (c, d) = gram
        determinant = a * d - b * c
        return weights_of((aims[0] * d - aims[1] * b) / determinant, (aims[1] * a - aims[0] * c) / determinant)
    return weights_of(*np.linalg.solve(np.array(gram), np.array(aims)).tolist())
