"""How far cosines of rows are from the exact ones, and which law the residuals follow.

Shapes: n samples; p pairs of them, i < j; s seeds; k width of a row. d is a pair's
cos_projected - cos_exact, and c its cos_exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pntk.batch import batch_size, take
from pntk.errors import ConfigError, DataError
from pntk.featurizer import Featurizer
from pntk.naming import ParamFilter, model_device, unwrap
from pntk.ntk.columns import Columns
from pntk.ntk.exact import EmpiricalNTK
from pntk.ntk.pilot import check_samples, cosines, first_samples, like, with_gradient
from pntk.projection.spec import ProjectionSpec

KINDS = ("trace", "pntk")
LAWS = ("exponential", "half-normal", "mixture")
QUANTILES = (0.5, 0.9, 0.95, 0.99)

_SCALES = 256  # by which the mixture over all pairs is stood for
_POINTS = 4096  # of an empirical distribution at which a law is compared with it
_PARALLEL = 1e-6  # 1 - c^2 below which rounding is what would be measured


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over seeds of the projection (jackknife)."""

    value: float
    std: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.std:.1g})"


@dataclass(frozen=True)
class Residuals:
    """Of one width.

    Attributes:
        proj_dim: k.
        values: |d| [s, p].
        mean: mean |d|.
        quantiles: of |d|, by probability.
        a: k mean |d|, the maximum likelihood estimate of a in P(|d| <= x) = 1 - exp(-x k / a).
        distances: law -> Kolmogorov-Smirnov distance of all |d| from it, fitted; see :func:`cdf`.
    """

    proj_dim: int
    values: Tensor
    mean: Estimate
    quantiles: dict[float, Estimate]
    a: Estimate
    distances: dict[str, Estimate]


@dataclass(frozen=True)
class ResidualStudy:
    """Residuals of cosines at several widths; prints as a table.

    Attributes:
        kind: ``trace`` or ``pntk``.
        projection: family of the projection.
        params: numbers in a gradient of one output.
        samples: n, those with a gradient other than zero.
        seeds: s.
        cosines: c [p].
        levels: of each width, ascending.
        exponent: b of mean |d| ~ k^-b, by least squares of logarithms; None for one width.
    """

    kind: str
    projection: str
    params: int
    samples: int
    seeds: int
    cosines: Tensor
    levels: tuple[Residuals, ...]
    exponent: Estimate | None

    @property
    def expected(self) -> float:
        """sqrt(k) mean |d| of independent coordinates: sqrt(2 / pi) times the mean of 1 - c^2."""
        return math.sqrt(2 / math.pi) * float((1 - self.cosines.square()).mean())

    def __str__(self) -> str:
        low, middle, high = np.quantile(self.cosines.numpy(), [0.05, 0.5, 0.95])
        heads = ["k", "mean |d|", "95 %", "99 %", "sqrt(k) mean", "a = k mean"]
        rows = [heads + [f"KS {law}" for law in LAWS]]
        for level in self.levels:
            root = math.sqrt(level.proj_dim)
            scaled = Estimate(root * level.mean.value, root * level.mean.std)
            numbers = [level.mean, level.quantiles[0.95], level.quantiles[0.99], scaled, level.a]
            numbers += [level.distances[law] for law in LAWS]
            rows.append([f"{level.proj_dim:,}", *map(str, numbers)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{self.kind}, {self.projection}: {self.params:,} parameters, {self.samples:,} samples "
            f"({self.cosines.numel():,} pairs), {self.seeds} seeds; exact cosines {low:.3f} to "
            f"{high:.3f} (5 and 95 %), median {middle:.3f}",
            *("  ".join(map(str.rjust, row, widths)) for row in rows),
            f"sqrt(k) mean is {self.expected:.3g} where the coordinates of rows are independent",
        ]
        if self.exponent is not None:
            lines.append(f"mean |d| ~ k^-b with b = {self.exponent}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: all but the residuals themselves."""
        return {
            "kind": self.kind,
            "projection": self.projection,
            "params": self.params,
            "samples": self.samples,
            "pairs": self.cosines.numel(),
            "seeds": self.seeds,
            "cosines": {
                f"{q:g}": float(np.quantile(self.cosines.numpy(), q)) for q in (0.05, 0.5, 0.95)
            },
            "expected": self.expected,
            "levels": [
                {
                    "proj_dim": level.proj_dim,
                    "mean": _plain(level.mean),
                    "quantiles": {f"{q:g}": _plain(v) for q, v in level.quantiles.items()},
                    "a": _plain(level.a),
                    "distances": {law: _plain(v) for law, v in level.distances.items()},
                }
                for level in self.levels
            ],
            "exponent": None if self.exponent is None else _plain(self.exponent),
        }


def residual_study(
    model: nn.Module,
    data: Any,
    *,
    kind: str = "trace",
    projection: str = "hadamard",
    proj_dims: Sequence[int] = (256, 1024, 4096),
    seeds: int = 5,
    samples: int = 100,
    output: Any = None,
    params: ParamFilter = None,
    precision: str = "fp32",
    memory_budget: int | str = "1GB",
    device: torch.device | str = "auto",
    check: bool = True,
    progress: bool = False,
) -> ResidualStudy:
    """Measure |cos_projected - cos_exact| over pairs of samples, widths and seeds.

    Engel et al. describe |d| by P(|d| <= x) = 1 - exp(-x k / a), where k itself in the exponent
    has mean |d| = a / k: four times the width would quarter the error. Measured is mean |d| ~ k^-b
    with b near 1/2, which halves it; a that was fitted at one width grows as sqrt(k) and holds for
    no other. The shape comes from pooling pairs: the k numbers of a row are nearly independent and
    Gaussian, so d of one pair is normal with the standard deviation (1 - c^2) sqrt(ratio / k)
    (:func:`pntk.kernel_std`), and all pairs together are a mixture of half-normals. That is close
    to an exponential where exact cosines differ much between pairs, and to one half-normal where
    they are all small; the mixture serves both.
    ``docs/uncertainty.md`` has numbers.

    Args:
        model: any module in eval mode; left as found.
        data: as :meth:`pntk.Featurizer.featurize` takes it. The first examples are used: shuffle
            what is sorted.
        kind: ``trace`` or ``pntk``, as of :func:`pntk.empirical_ntk`.
        projection: ``hadamard``, ``rademacher`` or ``normal``.
        proj_dims: widths k.
        seeds: projections with the seeds 0, 1, ... are measured, at least 2.
        samples: how many to use, at least 8.
        output: what the model's outputs are, as of :func:`pntk.empirical_ntk`.
        params, device: as of :class:`pntk.Featurizer`.
        precision: ``fp32`` or ``fp64``, of gradients and kernels.
        memory_budget: bytes, or a text such as ``"2GB"``, that a pass may take beside the model.
        check: whether the first samples run the checks of :meth:`pntk.Featurizer.check`.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: bad arguments, before any work.
        DataError: fewer than 8 samples with a gradient other than zero, or all gradients parallel.

    Source: Engel et al. (2023), https://arxiv.org/abs/2305.14585, for the law.

    >>> model = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 3))
    >>> found = residual_study(model, torch.randn(20, 8), proj_dims=(16, 64), seeds=3)
    >>> [level.proj_dim for level in found.levels], found.levels[1].values.shape
    ([16, 64], torch.Size([3, 190]))
    """
    specs = check_study(kind, projection, proj_dims, seeds, samples)
    options: dict[str, Any] = {
        "params": params,
        "precision": precision,
        "memory_budget": memory_budget,
        "device": device,
    }
    exact = EmpiricalNTK(model, kind, output=output, check=check, **options)
    featurizer = Featurizer(model, Columns(kind, output), specs[0][0], check=False, **options)
    batch = first_samples(data, samples, model_device(unwrap(model), device))
    kernel = exact(_loader(batch))
    assert isinstance(kernel, Tensor)
    broken = (~kernel.diagonal().isfinite()).nonzero().flatten().tolist()
    if broken:
        raise DataError(
            f"the gradient of sample {broken[0]} holds NaN or infinity, or its square does "
            f"({len(broken)} such samples); expected finite ones: leave them out, or mend the "
            "model's outputs for them"
        )
    kernel = kernel.double()
    usable = with_gradient(kernel)
    target = cosines(kernel[usable][:, usable])
    if float((1 - target.square()).mean()) < _PARALLEL:
        raise DataError(
            f"all {int(usable.sum())} gradients are parallel (cosines of 1 or -1), which a "
            "projection keeps; expected different samples, or a model of more than one parameter"
        )

    def residuals(spec: ProjectionSpec) -> Tensor:
        rows = like(featurizer, spec)(batch).cpu().double()[usable]
        return (cosines(rows @ rows.T) - target).abs()

    values = []  # [s, p] of each width
    with tqdm(total=len(specs) * seeds, unit="projection", disable=not progress) as bar:
        for of_width in specs:
            found = []
            for spec in of_width:
                found.append(residuals(spec))
                bar.update()
            values.append(torch.stack(found))
    widths = [of_width[0].proj_dim or 0 for of_width in specs]
    return ResidualStudy(
        kind=kind,
        projection=projection,
        params=sum(p.numel() for p in exact.params.values()),
        samples=int(usable.sum()),
        seeds=seeds,
        cosines=target,
        levels=tuple(_level(k, v, target) for k, v in zip(widths, values, strict=True)),
        exponent=_exponent(widths, torch.stack([v.mean(1) for v in values])),
    )


def cdf(law: str, x: Tensor, values: Tensor, of_pairs: Tensor) -> Tensor:
    """Return P(|d| <= x) by a law with one parameter that is fitted to residuals.

    ``exponential``: 1 - exp(-x / mean |d|). ``half-normal``: erf(x / sqrt(2 mean d^2)).
    ``mixture``: the mean over pairs of erf(x / (sqrt(2) sigma (1 - c^2))), with sigma^2 =
    mean d^2 / mean (1 - c^2)^2. Each is the law's maximum likelihood fit but the last, which has
    the second moment right.

    Args:
        law: one of ``LAWS``.
        x: where to take it.
        values: |d| that the law is fitted to, [..., p].
        of_pairs: c [p].

    >>> cdf("exponential", torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]), torch.zeros(2))
    tensor([0.0000, 0.6321])
    """
    square = values.square().mean()
    if law == "exponential":
        return -torch.expm1(-x / values.mean())
    if law == "half-normal":
        return torch.erf(x / (2 * square).sqrt())
    if law != "mixture":
        raise ConfigError(f"unknown law {law!r}; expected one of {', '.join(LAWS)}")
    scales = (1 - of_pairs.square()).clamp(min=torch.finfo(of_pairs.dtype).tiny)
    sigma = (square / scales.square().mean()).sqrt()
    some = _evenly(scales.sort().values, _SCALES)
    return torch.erf(x[..., None] / (math.sqrt(2) * sigma * some)).mean(-1)


# ---- checks ------------------------------------------------------------------------------------


def check_study(
    kind: str, projection: str, proj_dims: Sequence[int], seeds: int, samples: int
) -> list[list[ProjectionSpec]]:
    """Return the projections [k][s] of a study, widths ascending.

    Raises:
        ConfigError: an argument of :func:`residual_study` that cannot work.
    """
    check_samples(samples)
    if kind not in KINDS:
        raise ConfigError(f"unknown kind {kind!r}; expected one of {', '.join(KINDS)}")
    if projection == "identity":
        raise ConfigError(
            "projection is 'identity', whose cosines are the exact ones; expected hadamard, "
            "rademacher or normal"
        )
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 2:
        raise ConfigError(
            f"seeds is {seeds!r}; expected an integer of at least 2, for standard errors"
        )
    several = isinstance(proj_dims, Sequence) and not isinstance(proj_dims, str)
    if not several or not proj_dims or len(set(proj_dims)) < len(proj_dims):
        raise ConfigError(
            f"proj_dims is {proj_dims!r}; expected different widths, such as (256, 1024, 4096)"
        )
    specs = [[ProjectionSpec(projection, k, seed) for seed in range(seeds)] for k in proj_dims]
    return sorted(specs, key=lambda of_width: of_width[0].proj_dim or 0)


def _loader(batch: Any) -> DataLoader[Any]:
    """Return what hands over parts of a batch of any nesting."""
    samples: Any = range(batch_size(batch))
    return DataLoader(
        samples, len(samples), collate_fn=lambda rows: take(batch, torch.tensor(rows))
    )


# ---- numbers -----------------------------------------------------------------------------------


def _level(k: int, values: Tensor, of_pairs: Tensor) -> Residuals:
    def numbers(some: Tensor) -> list[float]:
        flat = some.flatten().sort().values
        mean = float(flat.mean())
        return [
            mean,
            *np.quantile(flat.numpy(), QUANTILES).tolist(),
            k * mean,
            *(_distance(law, flat, some, of_pairs) for law in LAWS),
        ]

    mean, *rest = _jackknife(numbers, values)
    quantiles, (a, *distances) = rest[: len(QUANTILES)], rest[len(QUANTILES) :]
    return Residuals(
        proj_dim=k,
        values=values,
        mean=mean,
        quantiles=dict(zip(QUANTILES, quantiles, strict=True)),
        a=a,
        distances=dict(zip(LAWS, distances, strict=True)),
    )


def _distance(law: str, ascending: Tensor, values: Tensor, of_pairs: Tensor) -> float:
    """Return the Kolmogorov-Smirnov distance of sorted numbers from a law fitted to them."""
    count = len(ascending)
    ranks = _evenly(torch.arange(count), _POINTS)
    expected = cdf(law, ascending[ranks], values, of_pairs)
    above, below = (ranks + 1) / count - expected, expected - ranks / count
    return float(torch.maximum(above, below).max())


def _exponent(widths: list[int], means: Tensor) -> Estimate | None:
    """Return b of means [k, s] ~ k^-b."""
    if len(widths) < 2:
        return None
    x = torch.tensor(widths, dtype=torch.float64).log()
    x -= x.mean()

    def slope(some: Tensor) -> list[float]:  # [s, k]
        return [-float(x @ some.mean(0).log() / (x @ x))]

    return _jackknife(slope, means.T)[0]


def _jackknife(numbers: Callable[[Tensor], list[float]], values: Tensor) -> list[Estimate]:
    """Return numbers of values [s, ...], and how much they change where one seed is left out."""
    seeds = len(values)
    keep = ~torch.eye(seeds, dtype=torch.bool)
    without = torch.tensor([numbers(values[some]) for some in keep], dtype=torch.float64)
    std = without.std(0, correction=0) * math.sqrt(seeds - 1)
    return [Estimate(v, e) for v, e in zip(numbers(values), std.tolist(), strict=True)]


def _evenly(ascending: Tensor, count: int) -> Tensor:
    """Return some of many numbers, the middles of as many equal parts."""
    if len(ascending) <= count:
        return ascending
    places = (torch.arange(count, dtype=torch.float64) + 0.5) * (len(ascending) / count)
    return ascending[places.long()]


def _plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "std": estimate.std}
