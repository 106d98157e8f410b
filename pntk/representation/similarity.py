"""How alike two representations of the same samples are, by any measure.

Shapes: n samples; d, e neurons of x and of y.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from pntk.errors import ConfigError, DataError
from pntk.representation.cca import cca, pwcca, svcca
from pntk.representation.cka import linear_cka, rbf_cka
from pntk.representation.feature_maps import check_neurons, matrices, target_size, thinned
from pntk.representation.inputs import as_tensor
from pntk.representation.neighbours import neighbour_overlap
from pntk.representation.options import check_options
from pntk.representation.procrustes import procrustes
from pntk.representation.rsa import rsa

Measure = str | Callable[[Tensor, Tensor], float]

MEASURES: dict[str, Callable[..., float]] = {
    "cka": linear_cka,
    "rbf_cka": rbf_cka,
    "cca": cca,
    "svcca": svcca,
    "pwcca": pwcca,
    "procrustes": procrustes,
    "neighbours": neighbour_overlap,
    "rsa": rsa,
}


@dataclass(frozen=True)
class Shaping:
    """How matrices are made of layers: see :func:`similarity`.

    Raises:
        ConfigError: a choice that cannot work, whatever the layers.
    """

    neurons: str = "activation"
    size: int | tuple[int, int] | None = None
    pooling: str = "avg_pool"
    channel_axis: int | None = None
    samples_per_neuron: float | None = None
    max_samples: int | None = None

    def __post_init__(self) -> None:
        check_neurons(self.neurons)
        target_size(1 if self.size is None else self.size, self.pooling)
        check_options("", vars(self))

    def matrices(self, x: Tensor, name: str) -> Tensor:
        """Return [g, r, d], as :func:`pntk.representation.feature_maps.matrices` does."""
        return matrices(
            x,
            self.neurons,
            size=self.size,
            pooling=self.pooling,
            channel_axis=self.channel_axis,
            name=name,
        )


_ONE_SIZE = "give one size for both, size=(h, w) or --size"
SHAPING = tuple(field.name for field in fields(Shaping))


def similarity(
    x: Any,
    y: Any,
    measure: Measure = "cka",
    *,
    neurons: str = "activation",
    size: int | tuple[int, int] | None = None,
    pooling: str = "avg_pool",
    channel_axis: int | None = None,
    samples_per_neuron: float | None = None,
    max_samples: int | None = None,
    **options: Any,
) -> float:
    """Return how alike two representations are; 1 for the same one, in float64.

    Args:
        x: activations [n, d], or maps [n, c, h, w] or tokens [n, t, c]; tensor or array.
        y: likewise, of the same samples in the same order.
        measure: a name of ``MEASURES``, or a callable (x [n, d], y [n, e]) -> float.
        neurons: what a neuron of a map is, and so what its samples are:
            ``activation``, each number of a map, [n, c h w]; ``filter``, each channel, with
            positions as samples, [n h w, c]; ``per_sample`` and ``per_position``, the mean over
            matrices [c, h w] of each sample, or [n, c] of each position.
        size: height and width to which maps are down-sampled, or one number for both.
        pooling: ``avg_pool``, ``nearest``, ``bilinear`` or ``dft``.
        channel_axis: where the channels are; None for axis 1, or the last of [n, t, c].
        samples_per_neuron: keep as many rows a neuron, evenly spaced; refuses fewer.
        max_samples: keep at most as many rows.
        options: those of the measure, such as ``debiased=True`` of ``cka``.

    Raises:
        ConfigError: an unknown measure, option or choice.
        DataError: not the same samples, NaN, maps that cannot be down-sampled, or what the measure
            cannot do: see its function.

    Source: of each measure, at its function. Neurons of maps: Raghu et al. (2017), section 4,
    https://arxiv.org/abs/1706.05806; the four choices: ultimate-anatome,
    https://github.com/brando90/ultimate-anatome

    >>> import torch
    >>> x = torch.randn(20, 3, 4, 4)
    >>> round(similarity(x, 3 - 2 * x, "cka"), 12)
    1.0
    >>> round(similarity(x, 3 - 2 * x, "cca", neurons="filter"), 12)
    1.0
    """
    function = find_measure(measure, options)
    shaping = Shaping(neurons, size, pooling, channel_axis, samples_per_neuron, max_samples)
    x, y = as_tensor(x, "x"), as_tensor(y, "y")
    if size is not None and x.dim() == y.dim() == 2:
        raise DataError(
            f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)} and cannot be down-sampled;"
            " expected maps [n, c, h, w]: leave size out"
        )
    return compare(x, y, function, shaping)


def distance(x: Any, y: Any, measure: Measure = "cka", **options: Any) -> float:
    """Return 1 - :func:`similarity`, with the same arguments."""
    return 1.0 - similarity(x, y, measure, **options)


def find_measure(measure: Measure, options: dict[str, Any]) -> Callable[[Tensor, Tensor], float]:
    """Return a measure with its options set.

    Raises:
        ConfigError: there is no such measure, or it has no such option, or not of such a value.
    """
    if callable(measure):
        function: Callable[..., float] = measure
        known = list(options)  # its own to refuse
    elif measure in MEASURES:
        function = MEASURES[measure]
        parameters = inspect.signature(function).parameters.values()
        known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    else:
        near = difflib.get_close_matches(str(measure), MEASURES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"measure is {measure!r}; expected one of {', '.join(MEASURES)}{hint}")
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(
            f"{measure} has no option {', '.join(unknown)}; expected {', '.join(known) or 'none'}"
        )
    if isinstance(measure, str):
        check_options(measure, options)
    return lambda x, y: function(x, y, **options)


def split_options(options: dict[str, Any]) -> tuple[Shaping, dict[str, Any]]:
    """Return how to make matrices of layers, and what is left for the measure."""
    shaping = {name: options[name] for name in SHAPING if name in options}
    return Shaping(**shaping), {k: v for k, v in options.items() if k not in shaping}


def compare(
    x: Tensor, y: Tensor, measure: Callable[[Tensor, Tensor], float], shaping: Shaping
) -> float:
    """Return the mean of a measure over the matrices that two layers are made into.

    Raises:
        DataError: as in :func:`similarity`.
    """
    left, right = shaping.matrices(x, "x"), shaping.matrices(y, "y")
    check_rows(tuple(left.shape[:2]), tuple(right.shape[:2]), x.shape, y.shape, shaping)
    left, right = thinned(left, right, shaping.samples_per_neuron, shaping.max_samples)
    return sum(measure(a, b) for a, b in zip(left, right, strict=True)) / len(left)


def check_rows(
    left: tuple[int, ...],
    right: tuple[int, ...],
    x: Sequence[int],
    y: Sequence[int],
    shaping: Shaping,
) -> None:
    """Refuse layers that do not become as many matrices of as many rows.

    Args:
        left, right: matrices g and rows r of each side.
        x, y: shapes of the layers.
        shaping: how they were made.

    Raises:
        DataError: they differ.
    """
    if left == right:
        return
    way = "compare layers of as many channels" if shaping.neurons == "per_sample" else _ONE_SIZE
    hint = "" if x[0] != y[0] else f"; {way}, or use neurons='activation'"
    raise DataError(
        f"x has {_count(*left)} and y {_count(*right)} (shapes {tuple(x)} and {tuple(y)}, "
        f"neurons={shaping.neurons!r}); expected the same samples in the same order{hint}"
    )


def _count(matrices: int, rows: int) -> str:
    several = f"{matrices:,} matrices of " if matrices > 1 else ""
    return f"{several}{rows:,} rows"
