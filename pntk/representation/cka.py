"""Centred kernel alignment of two representations, whole or by minibatches.

Shapes: n samples; d, e neurons of x and of y; b samples of a minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError
from pntk.representation.inputs import as_tensor, centred_pair, squared_distances

Layers = Mapping[str, Any] | Sequence[Any]

LEAST_UNBIASED = 4  # samples: HSIC_1 divides by n (n - 3)
_NOTHING = 1e-14  # of a kernel's squared norm, which centring leaves by rounding


def linear_cka(x: Any, y: Any, *, debiased: bool = False) -> float:
    """Return |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred X and Y; 0 to 1.

    It does not change under rotation, shift and isotropic scaling of either side, and does under
    other invertible linear maps. No n x n matrix is made where n is above d and e.

    Args:
        x: [n, d], tensor or array.
        y: [n, e].
        debiased: whether to use the unbiased estimate HSIC_1 of each product of kernels. For
            independent representations that is about 0, and may be negative; otherwise they come to
            more than 0, and to nearly 1 for d and e far above n.

    Raises:
        DataError: not matrices of the same samples, or fewer than 4 with ``debiased``; rows that
            are all equal.

    Source: Kornblith, Norouzi, Lee, Hinton (2019), equation 5, https://arxiv.org/abs/1905.00414;
    HSIC_1: Song, Smola, Gretton, Bedo, Borgwardt (2012), theorem 2,
    https://jmlr.org/papers/v13/song12a.html

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 4.0]])
    >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> round(linear_cka(x, 7 - 2 * x @ turn), 12)
    1.0
    """
    first, second = centred_pair(x, y, LEAST_UNBIASED if debiased else 2)
    return _cosine(
        _linear_product(first, second, debiased),
        _linear_product(first, first, debiased),
        _linear_product(second, second, debiased),
        (float(first.square().sum()), float(second.square().sum())),
    )


def rbf_cka(x: Any, y: Any, *, sigma: float = 1.0, debiased: bool = False) -> float:
    """Return CKA of Gaussian kernels, exp(-|x_i - x_j|^2 / (2 s^2)); 0 to 1.

    Args:
        x: [n, d].
        y: [n, e].
        sigma: s over the median distance of two samples, for each side its own.
        debiased: as in :func:`linear_cka`.

    Raises:
        ConfigError: sigma is not positive.
        DataError: as in :func:`linear_cka`; also where more than half of the samples are equal.

    Source: Kornblith et al. (2019), section 4, where sigma is 0.2, 0.4 or 0.8.
    """
    first, second = centred_pair(x, y, LEAST_UNBIASED if debiased else 2)
    sides = [gaussian(z, bandwidth(z, sigma, name)) for z, name in ((first, "x"), (second, "y"))]
    k, m = (unbiased_centred(kernel) if debiased else _centred(kernel) for kernel in sides)
    return _cosine(
        float((k * m).sum()),
        float(k.square().sum()),
        float(m.square().sum()),
        (float(sides[0].norm()), float(sides[1].norm())),
    )


def unbiased_hsic(k: Tensor, m: Tensor) -> float:
    """Return HSIC_1 of two kernels [n, n]: 0 on average for independent samples.

    1 / (n (n - 3)) (tr(K' M') + sum K' sum M' / ((n - 1) (n - 2)) - 2 / (n - 2) 1^T K' M' 1), K'
    and M' being the kernels with zeros on the diagonal. It is the inner product of both after
    :func:`unbiased_centred`, over n (n - 3).

    Args:
        k: [n, n], symmetric.
        m: [n, n], likewise.

    Raises:
        DataError: fewer than 4 samples, or kernels of two sizes.

    Source: Song et al. (2012), theorem 2.
    """
    n = len(k)
    if k.shape != m.shape or n < LEAST_UNBIASED:
        raise DataError(
            f"kernels have shapes {tuple(k.shape)} and {tuple(m.shape)}; expected both [n, n] of "
            f"at least {LEAST_UNBIASED} samples"
        )
    return float((unbiased_centred(k) * unbiased_centred(m)).sum()) / (n * (n - 3))


class MinibatchCKA:
    """CKA between all layers of one list and all of another, a minibatch at a time.

    HSIC_1 of each pair is averaged over minibatches, in the numerator and in both norms, so that no
    more than a minibatch of activations is in memory. Minibatches that are not of one size count by
    their samples.

    Args:
        kernel: ``linear`` or ``rbf``.
        sigma: of ``rbf``, as in :func:`rbf_cka`; the medians are those of the first minibatch.

    Raises:
        ConfigError: unknown kernel, or sigma that is not positive.

    Source: Nguyen, Raghu, Kornblith (2021), section 2, https://arxiv.org/abs/2010.15327

    >>> sums = MinibatchCKA()
    >>> for _ in range(3):
    ...     x = torch.randn(16, 5)
    ...     sums.update([x], [3 - 2 * x])
    >>> sums.matrix().round(decimals=6)
    tensor([[1.]], dtype=torch.float64)
    """

    def __init__(self, kernel: str = "linear", *, sigma: float = 1.0) -> None:
        if kernel not in ("linear", "rbf"):
            raise ConfigError(f"kernel is {kernel!r}; expected 'linear' or 'rbf'")
        _check_sigma(sigma)
        self._rbf, self._sigma = kernel == "rbf", sigma
        self._scales: dict[tuple[str, str], float] = {}
        self._names: dict[str, list[str]] = {}
        self._sums: list[Tensor] = []
        self._samples = 0

    def update(self, xs: Layers, ys: Layers) -> None:
        """Add a minibatch.

        Args:
            xs: activations [b, ...] of each layer of the one side, in a list, or by name.
            ys: likewise of the other, of the same samples.

        Raises:
            DataError: fewer than 4 samples, or not as many in all layers; another number of layers
                than before.
        """
        left, right = self._kernels(xs, "x"), self._kernels(ys, "y")
        if left.shape[1] != right.shape[1]:
            raise DataError(
                f"x and y have {math.isqrt(left.shape[1])} and {math.isqrt(right.shape[1])} "
                "samples; expected the same minibatch"
            )
        b = math.isqrt(left.shape[1])
        scale = b / (b * (b - 3))
        found = [left @ right.T, left.square().sum(1), right.square().sum(1)]
        if not self._sums:
            self._sums = [torch.zeros_like(part) for part in found]
        for total, part in zip(self._sums, found, strict=True):
            if total.shape != part.shape:
                raise DataError(
                    f"the minibatch has {len(left)} and {len(right)} layers; expected "
                    f"{tuple(self._sums[0].shape)}, as before"
                )
            total += scale * part
        self._samples += b

    def matrix(self) -> Tensor:
        """Return CKA of each layer of x with each of y, float64 [layers of x, layers of y].

        Raises:
            DataError: no minibatch yet, or a layer whose samples are all alike.
        """
        if not self._sums:
            raise DataError("no minibatch has been added; call update(xs, ys) first")
        cross, left, right = self._sums
        for squares, name in ((left, "x"), (right, "y")):
            if not bool((squares > 0).all()):
                layer = self._names[name][int((squares <= 0).nonzero()[0])]
                raise DataError(
                    f"layer {layer!r} of {name} has a kernel of which centring leaves nothing; "
                    "expected activations that differ between samples"
                )
        return (cross / torch.outer(left, right).sqrt()).clamp_(-1, 1)

    def _kernels(self, layers: Layers, side: str) -> Tensor:
        """Return the centred kernels of all layers [layers, b^2]."""
        if not isinstance(layers, Mapping):
            layers = {str(number): layer for number, layer in enumerate(layers)}
        self._names[side] = list(layers)
        found: list[Tensor] = []
        for key, layer in layers.items():
            name = f"layer {key!r} of {side}"
            x = as_tensor(layer, name).flatten(1).double()
            if len(x) < LEAST_UNBIASED:
                raise DataError(
                    f"{name} has {len(x)} samples; expected minibatches of at least "
                    f"{LEAST_UNBIASED}, for which HSIC_1 is defined"
                )
            x = x - x.mean(0)
            if self._rbf:
                if (side, key) not in self._scales:
                    self._scales[side, key] = bandwidth(x, self._sigma, name)
                kernel = gaussian(x, self._scales[side, key])
            else:
                kernel = x @ x.T
            if found and kernel.numel() != found[0].numel():
                raise DataError(f"{name} has {len(x)} samples; expected those of the others")
            found.append(unbiased_centred(kernel).flatten())
        if not found:
            raise DataError(f"{side} has 0 layers; expected at least one")
        return torch.stack([each.to(found[0].device) for each in found])


def bandwidth(x: Tensor, sigma: float, name: str) -> float:
    """Return sigma times the median distance of two rows.

    Raises:
        ConfigError: sigma is not positive.
        DataError: the median is 0.
    """
    _check_sigma(sigma)
    upper = torch.triu_indices(len(x), len(x), 1, device=x.device)
    median = float(np.median(squared_distances(x)[upper[0], upper[1]].sqrt().cpu().numpy()))
    if median == 0:
        raise DataError(
            f"the median distance of two samples of {name} is 0, so that it sets no scale for a "
            "Gaussian kernel; use linear CKA, or leave equal samples out"
        )
    return sigma * median


def gaussian(x: Tensor, scale: float) -> Tensor:
    """Return exp(-|x_i - x_j|^2 / (2 scale^2)), [n, n]."""
    return squared_distances(x).mul_(-1 / (2 * scale**2)).exp_()


def unbiased_centred(kernel: Tensor) -> Tensor:
    """Return the kernel off the diagonal less what rows and columns have in common, [n, n].

    K'_ij - sum_l K'_il / (n - 2) - sum_l K'_lj / (n - 2) + sum K' / ((n - 1) (n - 2)), i != j.

    Source: Szekely, Rizzo (2014), section 2, https://arxiv.org/abs/1310.2926
    """
    n = len(kernel)
    off = kernel.clone().fill_diagonal_(0)
    sums = off.sum(1) / (n - 2)
    off -= sums[:, None] + sums - sums.sum() / (n - 1)
    off.fill_diagonal_(0)
    rounding = float(off.square().sum()) <= _NOTHING**2 * float(kernel.square().sum())
    return off.zero_() if rounding else off


# ---- private -----------------------------------------------------------------------------------


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < math.inf:
        raise ConfigError(f"sigma is {sigma}; expected a positive multiple of the median distance")


def _centred(kernel: Tensor) -> Tensor:
    means = kernel.mean(1)
    return kernel - means[:, None] - means + means.mean()


def _linear_product(x: Tensor, y: Tensor, debiased: bool) -> float:
    """Return the product of the kernels of centred rows; debiased, n (n - 3) HSIC_1."""
    n, d = x.shape
    e = y.shape[1]
    if d * e <= n * (d + e):
        inner = float((x.T @ y).square().sum())
    else:
        inner = float(((x @ x.T) * (y @ y.T)).sum())
    if not debiased:
        return inner
    # HSIC_1 of centred rows, whose K 1 is 0: only the diagonals are left to take away
    k, m = x.square().sum(1), y.square().sum(1)
    return inner - float(k @ m) * n / (n - 2) + float(k.sum() * m.sum()) / ((n - 1) * (n - 2))


def _cosine(inner: float, first: float, second: float, traces: tuple[float, float]) -> float:
    for square, trace, name in ((first, traces[0], "x"), (second, traces[1], "y")):
        if square <= _NOTHING * trace**2 or not math.isfinite(square):
            raise DataError(
                f"centring leaves a kernel of {name} of squared norm {square:.3g}, so that CKA is "
                "not defined; expected samples that are not all alike, or as far from each other"
            )
    return max(-1.0, min(1.0, inner / math.sqrt(first) / math.sqrt(second)))  # rounding
