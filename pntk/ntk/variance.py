"""How noisy a projection is, as a multiple of what independent Gaussian entries would be.

Shapes: n samples; k width of a row; T tiles; c outputs.

A row is phi_e(i) = sum over t of S_te x_te(i), with independent random signs S and coordinates e =
1..k; t runs over the tiles of all parameters and outputs, and x_t is the transform of what tile t
holds of sample i's gradient. With K_e[i, j] = sum over t of x_te(i) x_te(j), and for any M,

    Var_S sum_ij M[i, j] K^[i, j]
        = 2 sum over e of (tr (M K_e)^2 - sum over t of (x_te^T M x_te)^2),

exactly, given the diagonals and shifts of the seed. A dense matrix of signs is the case in which
each number of the gradient is a tile of its own that is spread evenly. Where all is spread evenly
and over many tiles, the variance of a kernel entry is that of independent Gaussian entries,
(K[i, i] K[j, j] + K[i, j]^2) / k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pntk.batch import batch_size as size_of
from pntk.batch import take
from pntk.errors import ConfigError, DataError
from pntk.ntk.pilot import gradients, like
from pntk.projection.hadamard import hadamard_matrix
from pntk.projection.quantiles import NORMAL_MEAN_SQUARE, NORMAL_TABLE
from pntk.projection.signs import GROUP, TileSigns
from pntk.projection.spec import MAX_SEED, ProjectionSpec
from pntk.projection.tiles import TileLayout

if TYPE_CHECKING:
    from pntk.featurizer import Featurizer

_SAMPLES, _LEAST_SAMPLES = 32, 4  # of a batch that are looked at
_GRADIENTS = 2**26  # numbers of one parameter's gradients
_COORDINATES = 2**24  # numbers of the kernels of all coordinates
_NUMBERS = 2**22  # of tiles that are worked on at a time


@dataclass(frozen=True)
class VarianceRatio:
    """Variances of a kernel's estimate, over those that independent Gaussian entries would give.

    Attributes:
        projection: that they are for. Of ``hadamard`` the seed matters too: its diagonals and
            shifts decide how evenly tiles are spread.
        off_diagonal: of K[i, j].
        diagonal: of K[i, i].
        cosine: of K[i, j] / sqrt(K[i, i] K[j, j]).
    """

    projection: ProjectionSpec
    off_diagonal: float
    diagonal: float
    cosine: float


@torch.no_grad()
def variance_ratio(featurizer: Featurizer, batch: Any, seeds: int | None = None) -> VarianceRatio:
    """Return how noisy a featurizer's kernels are, from a few samples.

    Averages over pairs of the formula at the top of this module, which has no noise of its own, or
    of variances over projections with other seeds, which is a check that assumes nothing: off by
    about sqrt(2 / seeds) where gradients resemble each other.

    Args:
        featurizer: of any random projection; it is left as it was.
        batch: samples as the featurizer takes them, at least 2; the first 32 are used, down
            to 4 where k is above 16384 or a parameter has more than 2 million numbers.
        seeds: None for the formula, or how many projections to measure with, at least 2.

    Returns:
        VarianceRatio for :func:`pntk.ntk.uncertainty.kernel_std`. Ratios are below 1 where few
        tiles hold most of the gradient.

    Raises:
        ConfigError: the projection is the identity, or ``seeds`` is no integer of at least 2.
        DataError: fewer than 2 samples with a gradient other than zero.
    """
    spec = featurizer.spec
    if spec.family == "identity":
        raise ConfigError(
            "projection is 'identity', whose kernels are exact; expected a random projection: "
            "there is no variance to ask for"
        )
    if seeds is not None and (isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 2):
        raise ConfigError(
            f"seeds is {seeds!r}; expected None for the formula, or an integer of at least 2"
        )
    largest = max(p.numel() for p in featurizer.params.values())
    most = min(math.isqrt(_COORDINATES // (spec.proj_dim or 1)), _GRADIENTS // largest, _SAMPLES)
    some = take(batch, slice(0, max(_LEAST_SAMPLES, most)))
    shares = _by_formula(featurizer, some) if seeds is None else _measured(featurizer, some, seeds)
    return VarianceRatio(spec, *(max(0.0, share) for share in shares))  # rounding goes below 0


# ---- formula -----------------------------------------------------------------------------------


class _Sums:
    """Sums of products of kernels [n, n], each float64 [n, n].

    Attributes:
        kernel: K[i, j].
        energies: K[i, i] K[j, j].
        squares: K[i, j]^2.
        mixed: K[i, i] K[i, j].
    """

    def __init__(self, n: int) -> None:
        self.kernel, self.energies, self.squares, self.mixed = (
            torch.zeros(n, n, dtype=torch.float64) for _ in range(4)
        )

    def add_numbers(self, x: Tensor) -> None:
        """Add the kernels x x^T of each column of numbers [n, count]."""
        squares = x * x
        both = squares @ squares.T
        self.kernel += x @ x.T
        self.energies += both
        self.squares += both
        self.mixed += (squares * x) @ x.T

    def add_kernels(self, kernels: Tensor) -> None:
        """Add kernels [count, n, n]."""
        energies = kernels.diagonal(dim1=1, dim2=2)
        self.kernel += kernels.sum(0)
        self.energies += energies.T @ energies
        self.squares += kernels.square().sum(0)
        self.mixed += torch.einsum("ei,eij->ij", energies, kernels)

    def forms(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums of 2 tr (M K)^2, for M of an entry and of a cosine, over the norms.

        The cosine's M is that of its first order: K[i, j] - cos (K[i, i] + K[j, j]) / 2.

        Args:
            kernel: [n, n], whose norms and cosines are taken.
        """
        norms = kernel.diagonal()
        both = norms[:, None] * norms
        cosines = kernel / both.sqrt()
        energies, squares = self.energies / both, self.squares / both
        mixed = self.mixed / (norms[:, None] * both.sqrt())
        alone = energies.diagonal()
        entry = energies + squares
        cosine = entry + cosines**2 * (squares + (alone[:, None] + alone) / 2)
        return entry, cosine - 2 * cosines * (mixed + mixed.T)

    def of(self, used: Tensor) -> _Sums:
        """Return the sums for some of the samples."""
        some = _Sums(0)
        for name, value in vars(self).items():
            setattr(some, name, value[used][:, used])
        return some


def _by_formula(featurizer: Featurizer, batch: Any) -> tuple[float, float, float]:
    spec, n = featurizer.spec, size_of(batch)
    assert spec.proj_dim is not None
    tiled = spec.family == "hadamard"
    coordinates = torch.zeros(spec.proj_dim if tiled else 0, n, n, dtype=torch.float64)
    alone = _Sums(n)
    for name, shape, values in gradients(featurizer, batch):
        transform = TileTransform(spec, name, shape) if tiled else None
        for gradient in values.cpu().double().unbind(1):  # of each output
            if transform is None:
                for numbers in gradient.split(max(1, _NUMBERS // n), dim=1):
                    alone.add_numbers(numbers)
                continue
            for tiles in transform(gradient).split(max(1, _NUMBERS // (n * spec.proj_dim))):
                alone.add_numbers(tiles.transpose(0, 1).reshape(n, -1))
                x = tiles.permute(2, 1, 0)  # [k, n, T]
                coordinates.baddbmm_(x, x.mT)
    used = _usable(alone.kernel.diagonal() > 0)
    alone, coordinates = alone.of(used), coordinates[:, used][:, :, used]
    kernel = alone.kernel
    norms = kernel.diagonal()
    cosines = kernel / (norms[:, None] * norms).sqrt()
    entry, cosine = whole = 1 + cosines**2, (1 - cosines**2) ** 2
    if tiled:
        sums = _Sums(len(norms))
        sums.add_kernels(coordinates)
        entry, cosine = (spec.proj_dim * form for form in sums.forms(kernel))
    weight = spec.proj_dim if tiled else _weight(spec.family)
    entry, cosine = (
        a - weight * b for a, b in zip((entry, cosine), alone.forms(kernel), strict=True)
    )
    off = ~torch.eye(len(norms), dtype=torch.bool)
    return (
        _share(entry[off], whole[0][off]),
        float(entry.diagonal().mean()) / 2,
        _share(cosine[off], whole[1][off]),
    )


class TileTransform:
    """What each tile of one parameter puts on the k numbers of a row, before the signs S.

    Args:
        spec: of ``hadamard``.
        name: of the parameter.
        shape: of the parameter.
    """

    def __init__(self, spec: ProjectionSpec, name: str, shape: tuple[int, ...]) -> None:
        assert spec.proj_dim is not None
        at = {"dtype": torch.float64, "device": torch.device("cpu")}
        self.layout = t = TileLayout.of(shape, spec.proj_dim)
        signs = TileSigns(spec, name, t, **at)  # type: ignore[arg-type]
        self._rows = signs.row_diagonal.view(-1, 1, 1, 1, t.ko, 1)
        self._columns = signs.column_diagonal.view(1, 1, -1, 1, 1, t.ki)
        self._h_rows = hadamard_matrix(t.ko, torch.float64, torch.device("cpu"))
        self._h_columns = hadamard_matrix(t.ki, torch.float64, torch.device("cpu"))
        gamma = torch.tensor(signs.gamma_rows)[:, None] ^ torch.tensor(signs.gamma_columns)
        rho = torch.tensor(signs.rho).expand_as(gamma)
        row = torch.arange(t.ko) ^ rho.reshape(-1, 1)  # [T, ko]
        column = torch.arange(t.ki) ^ (GROUP * gamma.reshape(-1, 1))  # [T, ki]
        self._places = (row[:, :, None] * t.ki + column[:, None]).flatten(1)  # [T, k]

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return [T, n, k] of gradients [n, size]."""
        t, n = self.layout, len(gradient)
        if t.vector:
            filled = F.pad(gradient, (0, t.rows * t.channels - gradient.shape[1]))
            matrix = filled.view(n, t.rows, 1, t.channels)
        else:
            matrix = gradient.reshape(n, t.rows, t.channels, t.positions).transpose(2, 3)
            if not t.per_position:
                matrix = matrix.reshape(n, t.rows, 1, -1)
        matrix = F.pad(matrix, (0, -matrix.shape[3] % t.ki, 0, 0, 0, -t.rows % t.ko))
        tiles = matrix.unflatten(3, (-1, t.ki)).unflatten(1, (-1, t.ko))  # [n, I, ko, P, J, ki]
        tiles = tiles.permute(1, 3, 4, 0, 2, 5) * self._rows * self._columns
        tiles = (self._h_rows @ tiles @ self._h_columns).reshape(-1, n, t.ko * t.ki)
        return tiles.gather(2, self._places[:, None].expand_as(tiles))


def _weight(family: str) -> float:
    """Return (3 - kurtosis) / 2 of a dense family's entries, 1 for signs."""
    if family == "rademacher":
        return 1.0
    fourth = float(np.mean(NORMAL_TABLE.astype(np.float64) ** 4))
    return (3 - fourth / NORMAL_MEAN_SQUARE**2) / 2


# ---- measurement -------------------------------------------------------------------------------


def _measured(featurizer: Featurizer, batch: Any, seeds: int) -> tuple[float, float, float]:
    spec = featurizer.spec
    assert spec.proj_dim is not None
    others = [replace(spec, seed=(spec.seed + 1 + i) % MAX_SEED) for i in range(seeds)]
    found = [like(featurizer, other)(batch).cpu().double() for other in others]
    kernels = torch.stack([rows @ rows.T for rows in found])  # [seeds, n, n]
    norms = kernels.diagonal(dim1=1, dim2=2)  # [seeds, n]
    used = _usable((norms > 0).all(0))
    kernels, norms = kernels[:, used][:, :, used], norms[:, used]
    cosines = kernels / (norms[:, :, None] * norms[:, None]).sqrt()
    mean = norms.mean(0)
    kernels = kernels / (mean[:, None] * mean).sqrt()
    off = ~torch.eye(len(mean), dtype=torch.bool)
    k = spec.proj_dim
    return (
        k * _share(kernels.var(0)[off], 1 + kernels.mean(0)[off] ** 2),
        k * float(kernels.var(0).diagonal().mean()) / 2,
        k * _share(cosines.var(0)[off], (1 - cosines.mean(0)[off] ** 2) ** 2),
    )


def _usable(present: Tensor) -> Tensor:
    """Return which samples have a gradient.

    Raises:
        DataError: fewer than two.
    """
    if int(present.sum()) < 2:
        raise DataError(
            f"{int(present.sum())} of {len(present)} samples have a gradient other than zero; "
            "expected at least 2, as variances are averaged over pairs: give a larger batch"
        )
    return present


def _share(part: Tensor, whole: Tensor) -> float:
    """Return a ratio of sums, and 1 where all samples are alike."""
    total = float(whole.sum())
    return float(part.sum()) / total if total > math.sqrt(torch.finfo(whole.dtype).eps) else 1.0
