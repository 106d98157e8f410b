"""A few samples and their gradients, and featurizers like a given one, for what is estimated.

Shapes: n samples; b batch; c outputs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from glob import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pntk.batch import batch_size as size_of
from pntk.batch import take, to_device
from pntk.errors import ConfigError, DataError
from pntk.loading import Batches
from pntk.projection.spec import ProjectionSpec

if TYPE_CHECKING:
    from pntk.featurizer import Featurizer

LEAST_SAMPLES = 8
_NUMBERS = 2**24  # of gradients that are held at a time, or those of one parameter


def check_samples(samples: object) -> None:
    """Refuse a number of samples whose pairs would be too few.

    Raises:
        ConfigError: no integer, or below 8.
    """
    whole = isinstance(samples, int) and not isinstance(samples, bool)
    if not whole or samples < LEAST_SAMPLES:  # type: ignore[operator]
        raise ConfigError(
            f"samples is {samples!r}; expected an integer of at least {LEAST_SAMPLES}, as the "
            "error is a quantile over pairs"
        )


def first_samples(data: Any, samples: int, device: torch.device) -> Any:
    """Return the first examples of data as one batch on a device, fewer where there are fewer."""
    batches = Batches(data, samples)
    _, batch = next(batches.covering(np.arange(min(samples, batches.length))))
    return to_device(take(batch, slice(0, samples)), device)


def with_gradient(kernel: Tensor) -> Tensor:
    """Return which samples [n] of an exact kernel [n, n] have a gradient other than zero.

    Raises:
        DataError: fewer than 8.
    """
    usable = kernel.diagonal() > 0
    if int(usable.sum()) < LEAST_SAMPLES:
        raise DataError(
            f"{int(usable.sum())} of {len(kernel)} samples have a gradient other than zero; "
            f"expected at least {LEAST_SAMPLES}: give more data, or a larger samples="
        )
    return usable


def cosines(kernel: Tensor) -> Tensor:
    """Return the cosines of pairs [n (n - 1) / 2] of a kernel [n, n]."""
    norms = kernel.diagonal().sqrt().clamp(min=torch.finfo(kernel.dtype).tiny)
    i, j = torch.triu_indices(len(kernel), len(kernel), 1)
    return kernel[i, j] / norms[i] / norms[j]


def like(
    featurizer: Featurizer, spec: ProjectionSpec, names: Collection[str] | None = None
) -> Featurizer:
    """Return a featurizer with another projection, and else as the given one, which is left alone.

    Args:
        featurizer: whose model, output, parameters and precision to take.
        spec: the other projection.
        names: parameters to take; None for all.
    """
    chosen = set(featurizer.params if names is None else names)
    forced = [row["name"] for row in featurizer.coverage() if row["module"] == "asked for"]
    return type(featurizer)(
        featurizer.model,
        featurizer.output,
        spec,
        params=lambda name, _: name in chosen,
        device=featurizer.device,
        impl="auto" if spec.family == "identity" else featurizer.impl,
        precision=featurizer.precision,
        memory_budget=featurizer.memory_budget,
        fallback=[escape(name) for name in forced if name in chosen],
        check=False,
    )


def gradients(featurizer: Featurizer, batch: Any) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """Yield (name, shape, gradients [b, c, size]) of each parameter, a few parameters at a time.

    A pass over the batch serves as many parameters as are held at a time.
    """
    shapes = {name: tuple(p.shape) for name, p in featurizer.params.items()}
    left, outputs = list(shapes), 1
    room = 0  # the first pass is for one parameter, and shows how many outputs there are
    while left:
        group = [left.pop(0)]
        size = math.prod(shapes[group[0]])
        while left and (size + math.prod(shapes[left[0]])) * outputs * size_of(batch) <= room:
            size += math.prod(shapes[left[0]])
            group.append(left.pop(0))
        rows = like(featurizer, ProjectionSpec("identity"), group)(batch)
        rows = rows.view(len(rows), -1, size)
        outputs, room = rows.shape[1], _NUMBERS
        pieces = rows.split([math.prod(shapes[name]) for name in group], dim=2)
        yield from ((name, shapes[name], piece) for name, piece in zip(group, pieces, strict=True))
