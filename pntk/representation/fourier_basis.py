"""Waves: the real two-dimensional Fourier basis.

Shapes: h, w pixels; m frequencies.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pntk.errors import ConfigError

Frequencies = npt.NDArray[np.int64]


def frequency_grid(size: tuple[int, int]) -> Frequencies:
    """Return the frequencies of a map [h, w], zero in the centre, as int64 [h, w, 2].

    Entry (r, c) is (r - h // 2, c - w // 2), as ``torch.fft.fftshift`` orders them.

    >>> frequency_grid((3, 2))[:, 0].tolist()
    [[-1, -1], [0, -1], [1, -1]]
    """
    h, w = size
    rows, columns = np.arange(h) - h // 2, np.arange(w) - w // 2
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).astype(np.int64)


def fourier_basis(
    size: tuple[int, int], frequencies: npt.ArrayLike | None = None, *, phase: float = 0.0
) -> Tensor:
    """Return waves of length 1, float64 [m, h, w].

    U[p, q] ~ cos(2 pi (i p / h + j q / w) + phase): real, so that its transform is not zero at
    (i, j) and its conjugate (-i mod h, -j mod w) alone. Waves of phases 0 and -pi/2, one of each
    conjugate pair, are an orthonormal basis.

    Args:
        size: (h, w), any size.
        frequencies: int [m, 2], (i, j) modulo the size; None for all of :func:`frequency_grid`, row
            by row.
        phase: in radians; of no effect where (i, j) is its own conjugate, whose only real wave is
            the cosine.

    Raises:
        ConfigError: a size, frequencies or a phase that cannot work.

    Source: Yin, Gontijo Lopes, Shlens, Cubuk, Gilmer (2019), A Fourier perspective on model
    robustness in computer vision, https://arxiv.org/abs/1906.08988

    >>> fourier_basis((2, 2), [[0, 1]]).tolist()
    [[[0.5, -0.5], [0.5, -0.5]]]
    """
    h, w = _size(size)
    if not math.isfinite(phase):
        raise ConfigError(f"phase is {phase!r}; expected a finite angle in radians")
    given = frequency_grid((h, w)).reshape(-1, 2) if frequencies is None else frequencies
    found = np.asarray(given)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu":
        raise ConfigError(
            f"frequencies have shape {found.shape} and dtype {found.dtype}; expected integers "
            "[m, 2]"
        )
    i, j = torch.from_numpy(found.astype(np.int64)).T[:, :, None, None]
    p, q = torch.arange(h)[:, None], torch.arange(w)
    turns = (i * p % h).double() / h + (j * q % w).double() / w  # exact in integers first
    own = (2 * i % h == 0) & (2 * j % w == 0)  # its own conjugate
    waves = torch.cos(2 * math.pi * turns + phase * (~own).double())
    return waves / waves.flatten(1).norm(dim=1)[:, None, None]


def conjugate_pairs(
    frequencies: Frequencies, size: tuple[int, int]
) -> tuple[Frequencies, Frequencies]:
    """Return the frequencies to compute, one of each pair, and where each frequency finds its own.

    Args:
        frequencies: int64 [m, 2].
        size: (h, w).

    Returns:
        int64 [k, 2], and int64 [m] with values below k.
    """
    sides = np.array(size)
    ours, theirs = frequencies % sides, -frequencies % sides
    places = np.minimum(ours @ [sides[1], 1], theirs @ [sides[1], 1])
    _, first, inverse = np.unique(places, return_index=True, return_inverse=True)
    return frequencies[first], inverse.reshape(-1).astype(np.int64)


def _size(size: tuple[int, int]) -> tuple[int, int]:
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if len(size) != 2 or not whole or min(size) < 1:
        raise ConfigError(f"size is {size!r}; expected (height, width), each at least 1")
    return size[0], size[1]
