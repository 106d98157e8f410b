"""Probabilities from scores that are none: one factor, fit to outputs of examples left out."""

from __future__ import annotations

import math

from torch import Tensor

_RANGE = (1e-3, 1e4)
_STEPS = 60


def fit_temperature(scores: Tensor, targets: Tensor, weights: Tensor) -> float:
    """Return t > 0 for which softmax(t * scores) gives the labels the largest likelihood.

    One factor changes no prediction, unlike Platt's sigmoid for each class, and no order of two
    scores of an example.

    Args:
        scores: float64 [n, c], of models that have not seen the example.
        targets: one-hot, float64 [n, c].
        weights: float64 [n].

    Source: Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks, section
    4.2, https://arxiv.org/abs/1706.04599

    >>> import torch
    >>> scores = torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64)
    >>> targets = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]], dtype=torch.float64)
    >>> round(fit_temperature(scores, targets, torch.ones(4, dtype=torch.float64)), 4)  # log 3
    1.0986
    """
    best = (scores * targets).sum(1)

    def slope(t: float) -> float:  # of the loss, which is convex in t
        expected = ((t * scores).softmax(1) * scores).sum(1)
        return float(weights @ (expected - best))

    low, high = (math.log(t) for t in _RANGE)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp((low + high) / 2)
