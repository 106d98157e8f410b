"""Sums over positions that norms' gradients are made of, by the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

import pntk.projection.ops  # noqa: F401 - registers norm_sums
from pntk.projection import gpu_ops
from pntk.projection.gpu_work import as_floats


def norm_sums(impl: str, delta: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums over positions of delta (x - mean), and of delta: [n, C, L] to float32 [n, C].

    Args:
        impl: ``cpu``, ``cuda`` or ``triton``.
        mean: float32 [C].
    """
    if impl == "cpu":
        return torch.ops.pntk.norm_sums(delta, x, mean)
    scale, shift = torch.empty(2, *delta.shape[:2], device=delta.device)
    gpu_ops.launch("norm_sums", impl, as_floats(delta), as_floats(x), mean, scale, shift)
    return scale, shift
