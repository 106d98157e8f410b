"""Hooks that gather what a layer puts out while a model is used."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pntk.errors import ConfigError, DataError, ModelError
from pntk.representation.capture import find_layers, first_tensor
from pntk.representation.similarity import Measure, find_measure, similarity, split_options


class SimilarityHook:
    """Gather the output of a layer over any number of forwards, and compare it with another's.

    What is gathered stays in memory, on the CPU, until :meth:`clear`.

    Args:
        model: whose forwards are watched, in eval mode where dropout or batch norm matter.
        name: of a module of the model.
        measure: as in :func:`pntk.representation.similarity`.
        options: likewise: ``neurons``, ``size`` and others, and those of the measure.

    Raises:
        ConfigError: no such layer (names those near it), or several; no such measure or option.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with SimilarityHook(net, "0") as first, SimilarityHook(net, "2") as last:
    ...     for _ in range(2):
    ...         _ = net(torch.randn(10, 3))
    >>> tuple(first.activations.shape), 0 < first.distance(last) < 1
    ((20, 8), True)
    """

    def __init__(
        self, model: nn.Module, name: str, measure: Measure = "cka", **options: Any
    ) -> None:
        find_measure(measure, split_options(options)[1])
        self.name, *others = find_layers(model, [name])
        if others:
            raise ConfigError(
                f"name is {name!r}, which {len(others) + 1} layers match; expected one: use "
                "SimilarityHook.create for several"
            )
        self._measure, self._options = measure, options
        self._kept: list[Tensor] = []
        module = dict(model.named_modules())[self.name]
        self._handle = module.register_forward_hook(self._keep)

    @classmethod
    def create(
        cls, model: nn.Module, names: Sequence[str], measure: Measure = "cka", **options: Any
    ) -> list[SimilarityHook]:
        """Return a hook for each of several layers; names may be patterns such as ``block.*``."""
        return [cls(model, name, measure, **options) for name in find_layers(model, names)]

    @property
    def activations(self) -> Tensor:
        """What has been gathered [n, ...], on the CPU.

        Raises:
            DataError: the model has not been used yet, or gave samples of several shapes.
        """
        if not self._kept:
            raise DataError(f"layer {self.name!r} has put out nothing yet; call the model first")
        shapes = {tuple(part.shape[1:]) for part in self._kept}
        if len(shapes) > 1:
            raise DataError(
                f"layer {self.name!r} put out samples of shapes {sorted(shapes)}; expected one "
                "shape: use inputs of one size, and clear() in between"
            )
        if len(self._kept) > 1:
            self._kept = [torch.cat(self._kept)]
        return self._kept[0]

    def similarity(self, other: SimilarityHook, **options: Any) -> float:
        """Return how alike both layers are, by this hook's measure.

        Args:
            other: a hook that saw the same samples in the same order.
            options: take the place of this hook's.

        Raises:
            ConfigError, DataError: as :func:`pntk.representation.similarity`.
        """
        merged = {**self._options, **options}
        return similarity(self.activations, other.activations, self._measure, **merged)

    def distance(self, other: SimilarityHook, **options: Any) -> float:
        """Return 1 - :meth:`similarity`."""
        return 1.0 - self.similarity(other, **options)

    def clear(self) -> None:
        """Forget what has been gathered."""
        self._kept = []

    def remove(self) -> None:
        """Stop gathering; what there is stays."""
        self._handle.remove()

    def __enter__(self) -> SimilarityHook:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        value = first_tensor(output)
        if value is None or value.dim() < 2:
            shape = type(output).__name__ if value is None else tuple(value.shape)
            raise ModelError(
                f"layer {self.name!r} puts out {shape}; expected a tensor [b, ...] with a row a "
                "sample: name another layer"
            )
        self._kept.append(value.detach().clone().cpu())  # layers may go on in place


DistanceHook = SimilarityHook
