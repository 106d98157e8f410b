"""Losses at points of a plane of weights, one by one or many at once.

Shapes: g points; b batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import vmap
from xxhash import xxh3_64

from pntk.errors import ModelError
from pntk.representation.directions import Direction, check_direction
from pntk.representation.inference import Batch, Criterion, hits_of, loss_of
from pntk.representation.stacked import run_stacked
from pntk.representation.workers import Workers

Floats = npt.NDArray[np.float64]


class Part(NamedTuple):
    """A tensor that moves: where it starts, and its directions."""

    start: Tensor
    x: Tensor
    y: Tensor | None


class Plane:
    """The weights of a model, and two directions from there, or one.

    Attributes:
        parts: name -> what moves.
        line: whether there is one direction only.
        numbers: entries of all that moves.

    Raises:
        ConfigError: directions that do not fit the model.
        ModelError: the model has no parameters.
    """

    def __init__(self, model: nn.Module, x: Direction, y: Direction | None) -> None:
        params = dict(model.named_parameters())
        if not params:
            raise ModelError(
                f"{type(model).__name__} has no parameters; a landscape needs at least one"
            )
        weights = {**params, **dict(model.named_buffers())}
        check_direction(x, weights, list(params), "x_direction")
        if y is not None:
            check_direction(y, weights, list(params), "y_direction")
        self.model = model
        self.line = y is None
        self.parts: dict[str, Part] = {}
        for name, weight in weights.items():
            moves = [d[name] if d is not None and name in d else None for d in (x, y)]
            if not any(m is not None and bool(m.any()) for m in moves):
                continue
            along = [
                torch.zeros_like(weight) if m is None else m.detach().to(weight) for m in moves
            ]
            self.parts[name] = Part(weight.detach(), along[0], None if y is None else along[1])
        self.numbers = sum(part.start.numel() for part in self.parts.values())

    def digest(self) -> str:
        """Return a hash of the directions."""
        digest = xxh3_64()
        for name, part in self.parts.items():
            for along in (part.x, part.y):
                digest.update(f"{name}|{along is None}|".encode())
                if along is not None:
                    flat = along.cpu().contiguous().reshape(-1)
                    digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()


class OneByOne:
    """Losses at points, each by an ordinary pass of a copy of the model over all data."""

    def __init__(self, plane: Plane, criterion: Criterion, accuracy: bool, recompute: bool) -> None:
        self._plane, self._criterion = plane, criterion
        self._accuracy, self._recompute = accuracy, recompute
        self._model = copy.deepcopy(plane.model).eval()
        self._weights = dict(self._model.named_parameters()) | dict(self._model.named_buffers())

    def __call__(
        self, xs: Floats, ys: Floats | None, samples: Iterable[Batch]
    ) -> tuple[Floats, Floats]:
        """Return the mean loss and the share of hits at each point, float64 [g]."""
        losses, hits = np.zeros(len(xs)), np.zeros(len(xs))
        for number, x in enumerate(xs):
            self._move(float(x), None if ys is None else float(ys[number]))
            if self._recompute:
                self._estimate_statistics(samples)
            total = 0
            for batch in samples:
                outputs = self._model(*batch.args, **batch.kwargs)
                loss = loss_of(self._criterion, outputs, batch.targets)
                losses[number] += batch.size * float(loss)
                if self._accuracy:
                    hits[number] += float(hits_of(outputs, batch.targets).sum())
                total += batch.size
            losses[number] /= total
            hits[number] /= total
        return losses, hits

    def _move(self, x: float, y: float | None) -> None:
        for name, part in self._plane.parts.items():
            weight = self._weights[name].data
            torch.add(part.start, part.x, alpha=x, out=weight)
            if y is not None and part.y is not None:
                weight.add_(part.y, alpha=y)

    def _estimate_statistics(self, samples: Iterable[Batch]) -> None:
        """Set the statistics of BatchNorm to the mean of those of the batches."""
        layers = statistics_layers(self._model)
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over batches
            layer.train()
        for batch in samples:
            self._model(*batch.args, **batch.kwargs)
        for layer in layers:
            layer.eval()


class InThreads:
    """Losses at points that are shared out among several who take them one by one."""

    def __init__(self, each: Sequence[OneByOne], workers: Workers) -> None:
        self._each, self._workers = each, workers

    def __call__(
        self, xs: Floats, ys: Floats | None, samples: Iterable[Batch]
    ) -> tuple[Floats, Floats]:
        """Return the mean loss and the share of hits at each point, float64 [g]."""

        def at(worker: int, place: int) -> tuple[Floats, Floats]:
            here = slice(place, place + 1)
            return self._each[worker](xs[here], None if ys is None else ys[here], samples)

        found = self._workers.map(at, range(len(xs)))
        losses, hits = zip(*found, strict=True)
        return np.concatenate(losses), np.concatenate(hits)


class Together:
    """Losses at points that go through the model at once, each layer with the weights of all."""

    def __init__(self, plane: Plane, criterion: Criterion, accuracy: bool) -> None:
        self._plane, self._criterion, self._accuracy = plane, criterion, accuracy

    def __call__(
        self, xs: Floats, ys: Floats | None, samples: Iterable[Batch]
    ) -> tuple[Floats, Floats]:
        """Return the mean loss and the share of hits at each point, float64 [g]."""
        moved = {name: _moved(part, xs, ys) for name, part in self._plane.parts.items()}
        losses, hits, total = np.zeros(len(xs)), np.zeros(len(xs)), 0
        for batch in samples:
            outputs = run_stacked(self._plane.model, moved, batch.args, batch.kwargs)
            losses += batch.size * self._each(self._loss, outputs, batch)
            if self._accuracy:
                hits += self._each(_hits, outputs, batch)
            total += batch.size
        return losses / total, hits / total

    def _each(self, function: Criterion, outputs: Tensor, batch: Batch) -> Floats:
        """Return a number for each point, [g]."""
        found: Tensor = vmap(function, in_dims=(0, None))(outputs, batch.targets)
        return found.double().cpu().numpy()

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return loss_of(self._criterion, outputs, targets)


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return hits_of(outputs, targets).sum()


def statistics_layers(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    """Return the layers of BatchNorm that keep statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]


def _moved(part: Part, xs: Floats, ys: Floats | None) -> Tensor:
    """Return the tensor at each point, [g, ...]."""

    def coordinates(values: Floats) -> Tensor:
        found = torch.from_numpy(values).to(part.start)
        return found.view(-1, *[1] * part.start.dim())

    moved = part.start + coordinates(xs) * part.x
    return moved if ys is None or part.y is None else moved + coordinates(ys) * part.y
