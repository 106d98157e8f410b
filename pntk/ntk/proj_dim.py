"""The width of rows that keeps cosines within a tolerance, from a few samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pntk.errors import ConfigError
from pntk.ntk.pilot import check_samples, cosines, first_samples, gradients, like, with_gradient
from pntk.projection.spec import MAX_PROJ_DIM, MAX_SEED, MIN_TILE_COLUMNS

if TYPE_CHECKING:
    from pntk.featurizer import Featurizer

_SEEDS = 4
_FIRST = (256, 1024)  # widths that are measured to begin with
_STEPS = 4  # widths that are tried between one power of two and the next, where any width can be
_WIDEST = 2**18  # of rows that are made to see
_DENSE = 2**33  # signs of a dense matrix that are made to see


@dataclass(frozen=True)
class ProjDim:
    """A proposed width of rows.

    Attributes:
        proj_dim: the smallest k whose error is within the tolerance.
        error: the quantile of |cos_projected - cos_exact| that is expected at that k.
        tolerance: what it should not exceed.
        quantile: of pairs of samples that should be within the tolerance.
        measured: whether the error was measured at that k, or follows from smaller ones.
        table: k -> error, of all that were measured, ascending.
    """

    proj_dim: int
    error: float
    tolerance: float
    quantile: float
    measured: bool
    table: dict[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        how = "measured" if self.measured else "by 1/sqrt(k) from smaller ones"
        lines = [
            f"proj_dim={self.proj_dim}: {self.quantile:.0%} of cosines within {self.error:.2g} "
            f"of the exact ones ({how}); wanted {self.tolerance:.2g}"
        ]
        return "\n".join(lines + [f"{k:>10}  {error:.4f}" for k, error in self.table.items()])


def suggest_proj_dim(
    featurizer: Featurizer,
    data: Any,
    tolerance: float,
    *,
    samples: int = 64,
    quantile: float = 0.95,
) -> ProjDim:
    """Return the smallest width k at which cosines of rows are close to the exact ones.

    The error at k is the quantile, over pairs of samples and four seeds, of |cos_projected -
    cos_exact|. It is measured at two widths, a k^(-1/2) is fitted, and the search goes on from the
    k that this proposes, up or down, by measurement where rows of that width are cheap to make.
    Widths are powers of two for ``hadamard``, and in steps of a fifth for the dense families.

    Args:
        featurizer: its model, output and family; its own width does not matter, and it is left as
            it was.
        data: as :meth:`pntk.Featurizer.featurize` takes it. The first examples are used: shuffle
            what is sorted.
        tolerance: error of a cosine, between 0 and 1.
        samples: how many to use, at least 8.
        quantile: share of pairs that should be within the tolerance.

    Raises:
        ConfigError: an argument out of range, the identity, or a tolerance that takes rows wider
            than the gradient; says which could be had.
        DataError: fewer than 8 samples with a gradient other than zero.
    """
    for what, value in (("tolerance", tolerance), ("quantile", quantile)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise ConfigError(f"{what} is {value!r}; expected a number between 0 and 1, as 0.05")
    check_samples(samples)
    if featurizer.spec.family == "identity":
        raise ConfigError(
            "projection is 'identity', whose rows are as wide as the gradient; expected hadamard, "
            "rademacher or normal"
        )
    batch = first_samples(data, samples, featurizer.device)
    exact, width = _exact(featurizer, batch)
    usable = with_gradient(exact)
    target = cosines(exact[usable][:, usable])

    def error(k: int) -> float:
        found = []
        for i in range(_SEEDS):
            seed = (featurizer.spec.seed + 1 + i) % MAX_SEED
            spec = replace(featurizer.spec, proj_dim=k, seed=seed)
            rows = like(featurizer, spec)(batch).cpu().double()[usable.to("cpu")]
            found.append((cosines(rows @ rows.T) - target).abs())
        return float(torch.cat(found).quantile(quantile))

    family = featurizer.spec.family
    ladder = _ladder(family, min(width, MAX_PROJ_DIM))
    cheap = _WIDEST if family == "hadamard" else min(_WIDEST, _DENSE // width)
    search = _Search(error, tolerance, ladder, cheap)
    k = search.run()
    if search.expected(k) > tolerance:
        least = search.expected(k)
        raise ConfigError(
            f"tolerance is {tolerance:g}, and rows of {k:,} numbers have an error of {least:.2g}; "
            f"wider ones would outgrow the gradient itself, of {width:,}: use "
            f"projection='identity', or a tolerance of at least {least:.2g}"
        )
    table = dict(sorted(search.table.items()))
    return ProjDim(k, search.expected(k), tolerance, quantile, k in table, table)


class _Search:
    """Find the first width of a ladder whose error is within a tolerance.

    Args:
        error: measures it at a width.
        tolerance: what it should not exceed.
        ladder: widths, ascending.
        cheap: the largest width that is worth a measurement.
    """

    def __init__(
        self, error: Callable[[int], float], tolerance: float, ladder: list[int], cheap: int
    ) -> None:
        self.tolerance = tolerance
        self.ladder = ladder
        self.cheap = cheap
        self.table: dict[int, float] = {}
        self._error = error

    def run(self) -> int:
        """Return the width, or the last one if none will do."""
        for k in {min(self.ladder, key=lambda width: abs(width - first)) for first in _FIRST}:
            self.table[k] = self._error(k)
        scaled = [error**2 * k for k, error in self.table.items()]
        wanted = sum(scaled) / len(scaled) / self.tolerance**2
        last = len(self.ladder) - 1
        place = next((i for i, k in enumerate(self.ladder) if k >= wanted), last)
        while place < last and not self._fits(place):
            place += 1
        while place > 0 and self._fits(place) and self._fits(place - 1):
            place -= 1
        return self.ladder[place]

    def expected(self, k: int) -> float:
        """Return the error at a width, by 1/sqrt(k) from the widest that was measured."""
        if k in self.table:
            return self.table[k]
        widest = max(self.table)
        return self.table[widest] * math.sqrt(widest / k)

    def _fits(self, place: int) -> bool:
        k = self.ladder[place]
        if k not in self.table and k <= self.cheap:
            self.table[k] = self._error(k)
        return self.expected(k) <= self.tolerance


def _ladder(family: str, width: int) -> list[int]:
    """Return the widths to choose from, up to that of the gradient."""
    if family == "hadamard":
        powers = [2**i for i in range(width.bit_length()) if MIN_TILE_COLUMNS <= 2**i <= width]
        return powers or [MIN_TILE_COLUMNS]
    steps = range(_STEPS * width.bit_length())
    found = {round(2 ** (i / _STEPS)) for i in steps} | {width}
    return sorted(k for k in found if min(width, MIN_TILE_COLUMNS) <= k <= width)


def _exact(featurizer: Featurizer, batch: Any) -> tuple[Tensor, int]:
    """Return the kernel [n, n] of the gradients themselves, and how wide they are."""
    kernel, width = torch.zeros(()), 0
    for _, _, values in gradients(featurizer, batch):
        flat = values.flatten(1)
        kernel = kernel + (flat @ flat.T).cpu().double()
        width += flat.shape[1]
    return kernel, width
