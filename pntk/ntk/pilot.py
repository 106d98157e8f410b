"""A few samples' gradients, and featurizers like a given one, for what is estimated beforehand."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from glob import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pntk.batch import batch_size as size_of
from pntk.projection.spec import ProjectionSpec

if TYPE_CHECKING:
    from pntk.featurizer import Featurizer

_NUMBERS = 2**24  # of gradients that are held at a time, or those of one parameter


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
