"""Kinds of prediction of a network, and the linear maps between them.

A noisy state is x = alpha x_0 + sigma eps. Networks predict
    noise: eps,
    v:     alpha eps - sigma x_0 (Salimans & Ho, arXiv 2202.00512, appendix D),
    data:  x_0,
    flow:  eps - x_0, the velocity of the straight path alpha = 1 - s, sigma = s (Liu et al., arXiv 2209.03003).
Each is linear in (x_0, eps), and guidance, which weighs predictions for one x by weights that add up to 1, commutes
with the maps below.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.io.names import chosen

PREDICTIONS = ("noise", "v", "data", "flow")


def check_prediction(prediction: str) -> None:
    """Refuse an unknown kind of prediction.

    Raises:
        ValueError: if the prediction is not one of `PREDICTIONS`.

    """
    chosen("prediction", prediction, PREDICTIONS)


def target(prediction: str, x_0: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Return the target of a network's prediction for data x_0 and noise eps (N, C, H, W) at a level of noise."""
    if prediction == "v":
        return alpha * eps - sigma * x_0
    if prediction == "data":
        return x_0
    return eps - x_0 if prediction == "flow" else eps


def min_snr_weight(prediction: str, alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """Return the weights of a prediction's squared error that weigh that of the data by min(SNR, gamma).

    Hang et al., arXiv 2303.09556, section 3.4: min(SNR, gamma) / SNR for noise, min(SNR, gamma) / (SNR + 1) for v,
    min(SNR, gamma) for the data.
    """
    share = {
        "noise": sigma / alpha,
        "v": sigma / (alpha**2 + sigma**2),
        "data": torch.ones_like(sigma),
        "flow": sigma / (alpha + sigma),
    }[prediction]
    return ((alpha / sigma) ** 2).clamp(max=gamma) * share**2


def noise_of(prediction: str, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return the noise (N, C, H, W) that a prediction at x (N, C, H, W) stands for."""
    if prediction == "v":  # x_0 = (x - sigma eps) / alpha in the definition of v, solved for eps
        return (sigma * x + alpha * output) / (alpha**2 + sigma**2)
    if prediction == "data":
        return (x - alpha * output) / sigma
    return (x + alpha * output) / (alpha + sigma) if prediction == "flow" else output


def data_of(prediction: str, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return the data (N, C, H, W) that a prediction at x (N, C, H, W) stands for."""
    if prediction == "v":
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
    if prediction == "data":
        return output
    return (x - sigma * output) / (alpha + sigma) if prediction == "flow" else (x - sigma * output) / alpha


def velocity_of(prediction: str, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return the velocity eps - x_0 (N, C, H, W) that a prediction at x (N, C, H, W) stands for."""
    if prediction == "flow":
        return output
    return noise_of(prediction, output, x, alpha, sigma) - data_of(prediction, output, x, alpha, sigma)
