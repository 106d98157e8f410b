"""How far two models are from each other on each of several tasks.

Shapes: t tasks; l layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pntk.errors import ConfigError, DataError
from pntk.extras import require
from pntk.loading import Batches
from pntk.representation.capture import LayerOutputs
from pntk.representation.layers import check_memory, keep, one_warning, pair
from pntk.representation.similarity import Measure, find_measure, split_options


@dataclass(frozen=True)
class TaskDistances:
    """Distances of layers, a task at a time.

    Attributes:
        layers_a: names of the first model's layers [l].
        layers_b: of those of the second that they are compared with.
        values: float64 [t, l].
        measure: name of the measure.
        confidence: of :meth:`interval`.
    """

    layers_a: list[str]
    layers_b: list[str]
    values: Tensor
    measure: str
    confidence: float = 0.95

    @property
    def mean(self) -> Tensor:
        """Mean over tasks, [l]."""
        return self.values.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over tasks (t - 1), [l]; NaN for one task."""
        return _std(self.values)

    @property
    def interval(self) -> Tensor:
        """Half the width of Student's confidence interval of the mean, [l]; NaN for one task.

        Raises:
            MissingExtraError: SciPy is not installed.
        """
        tasks = len(self.values)
        if tasks < 2:
            return torch.full_like(self.mean, math.nan)
        quantile = require("scipy.stats", "the confidence interval").t.ppf
        return float(quantile((1 + self.confidence) / 2, tasks - 1)) * self.std / math.sqrt(tasks)

    def whole(self) -> tuple[float, float]:
        """Return mean and standard deviation over tasks of the mean over layers."""
        each = self.values.mean(1)
        return float(each.mean()), float(_std(each))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it, but for NaN."""
        return {
            "measure": self.measure,
            "tasks": len(self.values),
            "layers_a": self.layers_a,
            "layers_b": self.layers_b,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "interval": self.interval.tolist(),
            "confidence": self.confidence,
            "values": self.values.tolist(),
        }


def distance_over_tasks(
    model_a: nn.Module,
    model_b: nn.Module,
    tasks: Iterable[Any],
    layers: Sequence[str] | None = None,
    measure: Measure = "cka",
    *,
    layers_b: Sequence[str] | None = None,
    batch_size: int | None = None,
    memory_budget: int | str | None = "1GB",
    confidence: float = 0.95,
    progress: bool = True,
    **options: Any,
) -> TaskDistances:
    """Return 1 - similarity of each layer of one model and its counterpart, for each task.

    Args:
        model_a: in eval mode.
        model_b: likewise.
        tasks: batches, such as those of a DataLoader, or data sets: each as
            :meth:`pntk.Featurizer.featurize` takes it, labels ignored. Taken one at a time.
        layers: names of modules of ``model_a``, or patterns; None for all that have parameters and
            no children.
        measure: as in :func:`pntk.representation.similarity`, over all samples of a task.
        layers_b: those of ``model_b`` to compare them with, in that order; None for the same names.
        batch_size: samples of a forward; 64 unless told.
        memory_budget: for the activations of a task.
        confidence: of the interval of the mean.
        progress: whether to show a progress bar.
        options: as in :func:`pntk.representation.layer_similarity`.

    Raises:
        ConfigError, ModelError: as in :func:`pntk.representation.layer_similarity`; also where the
            lists of layers differ in length.
        DataError: no tasks, or what the measure cannot compare; says in which task.

    Source: the distances over batches of tasks of ultimate-anatome,
    https://github.com/brando90/ultimate-anatome

    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> found = distance_over_tasks(net, net, torch.randn(4, 20, 3), progress=False)
    >>> found.layers_a, [abs(round(float(mean), 6)) for mean in found.mean]
    (['0', '2'], [0.0, 0.0])
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; expected a share between 0 and 1")
    shaping, rest = split_options(options)
    function = find_measure(measure, rest)
    name = measure if isinstance(measure, str) else getattr(measure, "__name__", "measure")
    sides: list[LayerOutputs] = []
    values: list[list[float]] = []
    for number, task in enumerate(tqdm(tasks, unit="task", disable=not progress)):
        # a DataLoader's batch of several tensors is a list
        batches = Batches(tuple(task) if isinstance(task, list) else task, batch_size)
        if not sides:
            sides = _sides(model_a, model_b, batches.first(), layers, layers_b)
        check_memory(sides, batches.length, name, memory_budget)
        kept = [keep(side, batches, progress=False) for side in sides]
        names = zip(sides[0].names, sides[1].names, strict=True)
        try:
            with one_warning():
                values.append([1 - pair(kept, a, b, function, shaping) for a, b in names])
        except (ConfigError, DataError) as error:
            raise type(error)(f"task {number}: {error}") from error
    if not values:
        raise DataError("there are 0 tasks; expected at least one batch or data set")
    found = torch.tensor(values, dtype=torch.float64)
    return TaskDistances(sides[0].names, sides[1].names, found, name, confidence)


def _sides(
    model_a: nn.Module,
    model_b: nn.Module,
    batch: Any,
    layers: Sequence[str] | None,
    layers_b: Sequence[str] | None,
) -> list[LayerOutputs]:
    left = LayerOutputs(model_a, batch, layers, "model_a")
    right = LayerOutputs(model_b, batch, layers_b or left.names, "model_b")
    if len(left.names) != len(right.names):
        raise ConfigError(
            f"layers are {len(left.names)} and layers_b {len(right.names)}; expected pairs, as "
            "many of both"
        )
    return [left, right]


def _std(values: Tensor) -> Tensor:
    """Return the standard deviation along the first axis, NaN for a single one."""
    if len(values) < 2:
        return torch.full_like(values[0], math.nan)
    return values.std(0)
