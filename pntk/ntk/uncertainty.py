"""Error bars of kernels that rows estimate, and how sure an order of neighbours is.

Shapes: n, m rows; k width of a row; r neighbours.

The k coordinates of a row are nearly independent and Gaussian given the gradients, so moments of
the kernel itself give the variance of whatever is made of it: for symmetric M,

    Var sum_ij M[i, j] K^[i, j] = 2 tr (M K)^2 / k,

times a ratio that says how much less noise ``hadamard`` makes (:mod:`pntk.ntk.variance`). Source:
covariance of a Wishart matrix, for example Muirhead 1982, Aspects of Multivariate Statistical
Theory, section 3.1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pntk.errors import ConfigError, OutOfMemoryError
from pntk.host import available_memory
from pntk.memory import parse_bytes
from pntk.ntk.projected import ntk
from pntk.ntk.variance import VarianceRatio
from pntk.projection.spec import ProjectionSpec
from pntk.retrieval import METRICS, TopK, topk
from pntk.rows import Rows, as_rows, row_norms
from pntk.store import FeatureStore

_STRIP = 2**22  # numbers of a strip of the result, or of rows, that are worked on at a time
_SAME = 1e-3  # relative difference of scores that rounding explains


@torch.no_grad()
def kernel_std(
    a: Any,
    b: Any = None,
    *,
    normalize: bool = False,
    variance_ratio: float | VarianceRatio = 1.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Return the kernel of rows, and the standard error of each entry from the projection.

    std^2 = ratio (K[i, i] K[j, j] + K[i, j]^2) / k, and for the cosine, by the delta method,
    std^2 = ratio (1 - cos^2)^2 / k. The diagonal of a cosine is exact, and rows of zeros have
    entries without error. It says nothing of what a kernel of other weights or data would be.

    Args:
        a: rows [n, k]: tensor, array or FeatureStore.
        b: rows [m, k], or None for ``a`` itself.
        normalize: whether to divide by the norms of the rows.
        variance_ratio: of the true variance over that of independent entries, which is 1 for
            ``rademacher`` and ``normal``. For ``hadamard`` it is anything from 0.1 to 2, by model,
            k and seed: :func:`pntk.ntk.variance.variance_ratio` tells.
        options: of :func:`pntk.ntk`, but ``out``.

    Returns:
        (kernel, std), both [n, m] of the rows' type on the CPU.

    Raises:
        ConfigError: as :func:`pntk.ntk` does; rows that are no projections; ``out``; a ratio that
            is negative, or for another projection.
        OutOfMemoryError: memory cannot hold both.

    >>> kernel_std(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))[1]
    tensor([[25.0000,  9.0554],
            [ 9.0554,  4.0000]])
    """
    if options.get("out") is not None:
        raise ConfigError(
            f"out is {str(options['out'])!r} and standard errors are wanted; they are made in "
            "memory alone: leave out= away, or call ntk without with_std=True"
        )
    left = as_rows(a)
    right = left if b is None else as_rows(b)
    (n, k), m = left.shape, right.shape[0]
    ratio = _ratio(variance_ratio, "cosine" if normalize else "off_diagonal", left, right)
    diagonal = 0.0 if normalize else _ratio(variance_ratio, "diagonal", left, right)
    _check_room(n, m, torch.promote_types(left.dtype, right.dtype))
    kernel = ntk(a, b, normalize=normalize, **options)
    assert isinstance(kernel, Tensor)
    x = _norms(left).to(kernel.dtype)
    y = x if b is None else _norms(right).to(kernel.dtype)
    std = torch.empty_like(kernel)
    step = max(1, _STRIP // m)
    for i in range(0, n, step):
        part, strip = kernel[i : i + step], std[i : i + step]
        if normalize:
            torch.sub(1, part.square(), out=strip).clamp_(min=0)
            strip *= (x[i : i + step, None] > 0) & (y > 0)
        else:
            torch.hypot(x[i : i + step, None] * y, part, out=strip)
    std *= math.sqrt(ratio / k)
    if b is None:
        std.diagonal().copy_(x.square() * math.sqrt(2 * diagonal / k))
    return kernel, std


def interval(kernel: Tensor, std: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Return (low, high) that hold a kernel entry with the probability ``level``.

    kernel -+ z std, with z the normal quantile of (1 + level) / 2. The probability is over seeds of
    the projection.

    Raises:
        ConfigError: the level is not between 0 and 1, or shapes differ.

    >>> interval(torch.tensor([1.0]), torch.tensor([0.1]))
    (tensor([0.8040]), tensor([1.1960]))
    """
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ConfigError(f"level is {level!r}; expected a probability between 0 and 1, as 0.95")
    if kernel.shape != std.shape:
        raise ConfigError(
            f"kernel is {tuple(kernel.shape)} and std {tuple(std.shape)}; expected one shape, as "
            "kernel_std returns them"
        )
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    return kernel - z * std, kernel + z * std


# ---- order -------------------------------------------------------------------------------------


@torch.no_grad()
def order_probability(
    queries: Any,
    store: Any,
    found: TopK,
    variance_ratio: float | VarianceRatio = 1.0,
    *,
    metric: str = "cosine",
    memory_budget: int | str = "1GB",
) -> Tensor:
    """Return how sure it is that each neighbour is nearer than the next one.

    P = Phi(gap / std of the gap), where the next one of the last neighbour is the best row that was
    left out. Both scores share the query, and neighbours resemble each other, so the gap's error is
    that of one quantity: sum_ij M[i, j] K[i, j] over the query and the two rows, whose variance is
    at the top of this module. Each pair is judged by itself, as if all gaps had been equally
    likely before.

    Args:
        queries, store: rows that were searched.
        found: what :func:`pntk.topk` returned, [m, r].
        variance_ratio: as in :func:`kernel_std`.
        metric: ``cosine`` or ``dot``, as in the search.
        memory_budget: as in the search, which is made once more for r + 1 neighbours.

    Returns:
        Float64 [m, r], at least 0.5 but for rounding; 1 where no row is left to come next, NaN
        where there is no neighbour.

    Raises:
        ConfigError: unknown metric; ``found`` does not fit the rows or the metric; a ratio that is
            negative, or for another projection.
    """
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; expected one of {', '.join(METRICS)}")
    left, right = as_rows(queries, "queries"), as_rows(store, "store")
    kind = "cosine" if metric == "cosine" else "off_diagonal"
    scale = _ratio(variance_ratio, kind, left, right) / left.shape[1]
    (m, r), n = found.indices.shape, right.shape[0]
    if m != left.shape[0] or r > n or int(found.indices.max()) >= n:
        raise ConfigError(
            f"found is for {m} queries and rows up to {int(found.indices.max())}; expected "
            f"{left.shape[0]} queries and {n} rows: pass the rows that were searched"
        )
    more = topk(queries, store, min(r + 1, n), metric=metric, memory_budget=memory_budget)
    chosen = torch.cat([found.indices, _best_left_out(more.indices, found.indices)], dim=1)
    sure = torch.empty(m, r, dtype=torch.float64)
    room = (parse_bytes(memory_budget) or 0) // 8
    step = max(1, min(_STRIP, room // 4) // ((r + 2) * left.shape[1]))
    for i in range(0, m, step):
        x = left.block(i, i + step).cpu().double()
        picked = chosen[i : i + step]
        y = _rows_at(right, picked.clamp(min=0))
        sure[i : i + step] = _sure(x, y, picked, found.values[i : i + step], metric, scale)
    return sure


def _best_left_out(more: Tensor, found: Tensor) -> Tensor:
    """Return the first of ``more`` [m, r + 1] that is not in ``found`` [m, r]; -1 where none is."""
    new = (more[:, :, None] != found[:, None]).all(2) & (more >= 0)
    first = more.gather(1, new.int().argmax(1, keepdim=True))
    return first.masked_fill(~new.any(1, keepdim=True), -1)


def _rows_at(rows: Rows, places: Tensor) -> Tensor:
    """Return float64 rows [b, r, k] at places [b, r]."""
    if isinstance(rows.source, FeatureStore):
        picked = rows.source[places.reshape(-1).numpy()]
    else:
        picked = rows.source[places.reshape(-1).to(rows.source.device)].cpu()
    return picked.double().view(*places.shape, -1)


def _sure(
    x: Tensor, y: Tensor, picked: Tensor, values: Tensor, metric: str, scale: float
) -> Tensor:
    """Return probabilities [b, r] for queries x [b, k] and neighbours y [b, r + 1, k]."""
    if metric == "cosine":
        x, y = _unit(x), _unit(y)
    scores = torch.einsum("bk,brk->br", x, y)
    _check_scores(scores[:, :-1], values.double(), metric)
    a, b = y[:, :-1], y[:, 1:]
    c = torch.stack([x[:, None].expand_as(a), a, b], dim=2)  # [b, r, 3, k]
    c = c @ c.mT
    gap = c[..., 0, 1] - c[..., 0, 2]
    m = torch.zeros_like(c)
    m[..., 0, 1] = m[..., 1, 0] = 0.5
    m[..., 0, 2] = m[..., 2, 0] = -0.5
    if metric == "cosine":  # what a cosine loses where norms are too large
        m[..., 0, 0], m[..., 1, 1], m[..., 2, 2] = -gap / 2, -c[..., 0, 1] / 2, c[..., 0, 2] / 2
    product = m @ c
    variance = 2 * scale * (product * product.mT).sum((-2, -1)).clamp(min=0)
    sure = torch.special.ndtr(gap / variance.sqrt())
    sure = torch.where((gap == 0) & (variance == 0), 0.5, sure)
    present = picked >= 0
    sure = torch.where(present[:, 1:], sure, 1.0)
    return torch.where(present[:, :-1], sure, torch.nan)


def _check_scores(scores: Tensor, values: Tensor, metric: str) -> None:
    usable = values.isfinite()
    difference = torch.where(usable, scores - values, 0).abs()
    limit = _SAME * torch.where(usable, values.abs(), 0).amax(1, keepdim=True).clamp(min=1e-30)
    wrong = (difference > limit + _SAME * (metric == "cosine")).nonzero()
    if len(wrong):
        i, j = wrong[0].tolist()
        raise ConfigError(
            f"found.values has {float(values[i, j]):.6g} where these rows have the score "
            f"{float(scores[i, j]):.6g} under metric={metric!r}; pass the rows and the metric of "
            "the search"
        )


# ---- parts -------------------------------------------------------------------------------------


def _ratio(given: float | VarianceRatio, kind: str, *rows: Rows) -> float:
    """Return the ratio of one kind of entry.

    Raises:
        ConfigError: it cannot be one, or is not for these rows.
    """
    stores = [x.source for x in rows if isinstance(x.source, FeatureStore)]
    for store in stores:
        if store.header.projection.get("family") == "identity":
            raise ConfigError(
                f"{store.path} holds gradients themselves (projection 'identity'); expected "
                "projected rows: their kernel is exact, without an error bar"
            )
    if isinstance(given, VarianceRatio):
        spec = given.projection
        made = [store.header.projection for store in stores]
        others: list[object] = [m for m in made if "family" in m and not _same(m, spec)]
        if spec.proj_dim != rows[0].shape[1]:
            others.append(f"{rows[0].shape[1]} wide")
        if others:
            raise ConfigError(
                f"variance_ratio is for {spec.to_json()} and the rows are {others[0]}; expected "
                "that of the featurizer that made them: pntk.ntk.variance.variance_ratio"
            )
        return float(getattr(given, kind))
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not number or not 0 <= given < math.inf:
        raise ConfigError(
            f"variance_ratio is {given!r}; expected a number of at least 0, or what "
            "pntk.ntk.variance.variance_ratio returns"
        )
    return float(given)


def _same(made: dict[str, Any], spec: ProjectionSpec) -> bool:
    """Whether rows of a projection are as noisy as a spec's: the seed matters to ``hadamard``."""
    ours = spec.to_dict()
    names = ["family", "proj_dim", *(["seed"] if spec.family == "hadamard" else [])]
    return all(made.get(name) == ours[name] for name in names)


def _norms(rows: Rows) -> Tensor:
    """Return |row| [n] on the CPU."""
    step = max(1, _STRIP // rows.shape[1])
    starts = range(0, rows.shape[0], step)
    return torch.cat([row_norms(rows.block(i, i + step)).cpu() for i in starts])


def _unit(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norms.masked_fill(norms == 0, 1)


def _check_room(n: int, m: int, dtype: torch.dtype) -> None:
    needed, free = 2 * n * m * dtype.itemsize, available_memory()
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"a kernel of {n:,} x {m:,} and its standard errors take {needed:,} bytes and "
            f"{free:,} are available in memory; take fewer rows at a time"
        )
