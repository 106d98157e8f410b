"""The layers of one model against those of another.

Shapes: n samples; b samples of a minibatch; a, c layers of the first and of the second model.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pntk.errors import ConfigError, DataError, PntkWarning
from pntk.figures import png
from pntk.files import check_replaceable, write_whole
from pntk.loading import Batches
from pntk.memory import parse_bytes
from pntk.representation.capture import LayerOutputs
from pntk.representation.cca import check_samples
from pntk.representation.cka import LEAST_UNBIASED, MinibatchCKA
from pntk.representation.feature_maps import rows_kept
from pntk.representation.options import is_count
from pntk.representation.similarity import (
    Measure,
    Shaping,
    check_rows,
    compare,
    find_measure,
    split_options,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAMED = {"cka": "linear", "rbf_cka": "rbf"}
_SQUARES = {"rbf_cka": 4, "rsa": 4}  # matrices [n, n] that a measure holds at a time


@dataclass(frozen=True)
class LayerSimilarity:
    """How alike each layer of one model is to each of another.

    Attributes:
        matrix: float64 [a, c].
        layers_a: names of the first model's layers.
        layers_b: of the second's.
        measure: name of the measure.
        samples: n.
        minibatch: samples of a minibatch where CKA was averaged over them, otherwise None.
    """

    matrix: Tensor
    layers_a: list[str]
    layers_b: list[str]
    measure: str
    samples: int
    minibatch: int | None = None

    def best(self) -> list[tuple[str, str, float]]:
        """Return for each layer of the first model the one of the second that is most like it."""
        values, columns = self.matrix.max(1)
        return [
            (name, self.layers_b[int(column)], float(value))
            for name, column, value in zip(self.layers_a, columns, values, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "measure": self.measure,
            "samples": self.samples,
            "minibatch": self.minibatch,
            "layers_a": self.layers_a,
            "layers_b": self.layers_b,
            "matrix": self.matrix.tolist(),
        }

    def save(self, path: str | Path) -> None:
        """Write ``matrix``, ``layers_a``, ``layers_b`` and the rest to a file for ``np.load``.

        Raises:
            ConfigError: see :func:`check_similarity_path`.
        """
        check_similarity_path(Path(path))
        content = io.BytesIO()
        np.savez(
            content,
            matrix=self.matrix.numpy(),
            layers_a=np.array(self.layers_a),
            layers_b=np.array(self.layers_b),
            measure=np.array(self.measure),
            samples=np.array(self.samples),
            minibatch=np.array(self.minibatch or 0),
        )
        write_whole(Path(path), content.getvalue())

    def plot(self, *, name_a: str = "model a", name_b: str = "model b") -> Figure:
        """Draw the matrix as a heat map, the first layers at the lower left.

        Args:
            name_a: what to call the first model, whose layers are the rows.
            name_b: the second.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from pntk.representation.heat_map import heat_map

        return heat_map(self, name_a, name_b)

    def png(self, *, name_a: str = "model a", name_b: str = "model b") -> bytes:
        """Return :meth:`plot` as the bytes of a PNG."""
        return png(self.plot(name_a=name_a, name_b=name_b))


def check_similarity_path(path: Path) -> None:
    """Refuse a path that similarities cannot be written to.

    Raises:
        ConfigError: a file of something else, or see :func:`pntk.files.check_replaceable`.
    """
    check_replaceable(path)
    if not path.exists():
        return
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            ours = {"matrix", "layers_a", "layers_b"} <= set(archive.files)
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile):
        ours = False
    if not ours:
        raise ConfigError(
            f"{path} holds something else than similarities of layers; choose another path, or "
            "delete it"
        )


def layer_similarity(
    model_a: nn.Module,
    model_b: nn.Module | None,
    data: Any,
    *,
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    measure: Measure = "cka",
    minibatch: int | None = 256,
    batch_size: int | None = None,
    memory_budget: int | str | None = "1GB",
    progress: bool = True,
    **options: Any,
) -> LayerSimilarity:
    """Compare each layer of one model with each layer of another, on the same samples.

    ``cka`` and ``rbf_cka`` are averaged over minibatches (:class:`MinibatchCKA`), so that one
    minibatch of activations is in memory; the value depends on ``minibatch`` and not on
    ``batch_size``. All other measures, and all with ``minibatch=None`` or with ``neurons`` other
    than ``activation``, keep the activations of all samples in memory.

    Args:
        model_a: in eval mode.
        model_b: likewise; None for the layers of ``model_a`` among themselves.
        data: as :meth:`pntk.Featurizer.featurize` takes it; labels are ignored.
        layers_a: names of modules, or patterns such as ``encoder.*.mlp``; None for all modules
            without children that have parameters, in the order of their calls.
        layers_b: likewise of ``model_b``.
        measure: as in :func:`pntk.representation.similarity`.
        minibatch: samples whose kernels are compared at a time, at least 4; None for all at once.
            The last minibatch takes up to 3 samples more, if as few are left.
        batch_size: samples of a forward; None for the loader's own, or 64.
        memory_budget: for activations that are kept, such as ``"4GB"``; None for no limit.
        progress: whether to show a progress bar.
        options: ``neurons``, ``size`` and others of :func:`pntk.representation.similarity`, and
            those of the measure. ``size`` leaves layers without maps as they are.

    Raises:
        ConfigError: no such layer (names those near it), measure or option; or activations do not
            fit into the budget.
        ModelError: a model in train mode, or layers that put out no row a sample.
        DataError: data that cannot be read, or that the measure cannot compare.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> found = layer_similarity(net, None, torch.randn(40, 3), progress=False)
    >>> found.layers_a, [round(float(value), 6) for value in found.matrix.diagonal()]
    (['0', '2'], [1.0, 1.0])
    """
    shaping, rest = split_options(options)
    function = find_measure(measure, rest)
    group = _minibatch(measure, minibatch, shaping, rest)
    batches = Batches(data, batch_size)
    first = batches.first()
    left = LayerOutputs(model_a, first, layers_a, "model_a")
    same = model_b is None and layers_b is None
    other = model_a if model_b is None else model_b
    right = left if same else LayerOutputs(other, first, layers_b, "model_b")
    if group is None:
        check_memory([left, right], batches.length, str(measure), memory_budget)
        check_pairs(left, right, batches.length, measure, rest, shaping)
        kept = [keep(left, batches, progress=progress)]
        kept.append(kept[0] if right is left else keep(right, batches, progress=progress))
        with one_warning():
            values = [
                [pair(kept, a, b, function, shaping) for b in right.names] for a in left.names
            ]
        matrix = torch.tensor(values, dtype=torch.float64)
    else:
        sums = MinibatchCKA(STREAMED[str(measure)], **_without(rest, "debiased"))
        for samples in _groups(left, right, batches, group, progress):
            sums.update(
                *({name: shaping.matrices(x, name)[0] for name, x in s.items()} for s in samples)
            )
        matrix = sums.matrix().cpu()
    name = measure if isinstance(measure, str) else getattr(measure, "__name__", "measure")
    return LayerSimilarity(matrix, left.names, right.names, name, batches.length, group)


def keep(layers: LayerOutputs, batches: Batches, *, progress: bool) -> dict[str, Tensor]:
    """Return the activations [n, ...] of layers for all samples, on the CPU."""
    kept: dict[str, Tensor] = {}
    for start, stop in _ranges(batches.length, batches.batch_size, progress):
        for name, x in layers.run(batches.range(start, stop)).items():
            if name not in kept:
                kept[name] = torch.empty((batches.length, *x.shape[1:]), dtype=x.dtype)
            if x.shape[1:] != kept[name].shape[1:]:
                raise DataError(
                    f"layer {name!r} put out samples of shapes {tuple(kept[name].shape[1:])} and "
                    f"{tuple(x.shape[1:])}; expected inputs of one size"
                )
            kept[name][start:stop] = x
    return kept


def pair(
    kept: Sequence[dict[str, Tensor]], a: str, b: str, function: Any, shaping: Shaping
) -> float:
    """Return how alike two layers are; errors name them."""
    try:
        return compare(kept[0][a], kept[1][b], function, shaping)
    except (ConfigError, DataError) as error:
        raise type(error)(f"layers {a!r} (x) and {b!r} (y): {error}") from error


def check_pairs(
    left: LayerOutputs,
    right: LayerOutputs,
    samples: int,
    measure: Measure,
    options: Mapping[str, Any],
    shaping: Shaping,
) -> None:
    """Refuse layers that cannot be compared, by their shapes alone.

    Raises:
        ConfigError, DataError: what the measure would say once it has all activations.
    """
    sizes = [
        {name: _sizes(name, shape, samples, shaping) for name, shape in side.shapes.items()}
        for side in (left, right)
    ]
    for a in left.names:
        for b in right.names:
            (g, rows, d), (g_b, rows_b, e) = sizes[0][a], sizes[1][b]
            shapes = (samples, *left.shapes[a]), (samples, *right.shapes[b])
            try:
                check_rows((g, rows), (g_b, rows_b), *shapes, shaping)
                kept = rows_kept(rows, max(d, e), shaping.samples_per_neuron, shaping.max_samples)
                if measure in ("cca", "pwcca") and not options.get("ridge"):
                    check_samples(kept, d, e)
            except (ConfigError, DataError) as error:
                raise type(error)(f"layers {a!r} (x) and {b!r} (y): {error}") from error


def _sizes(
    name: str, shape: tuple[int, ...], samples: int, shaping: Shaping
) -> tuple[int, int, int]:
    """Return matrices g, rows r and neurons d of a layer, from a layer of two samples."""
    g, rows, d = shaping.matrices(torch.zeros(2, *shape), name).shape
    if len(shape) > 1 and shaping.neurons == "per_sample":
        return samples, rows, d
    return g, rows // 2 * samples, d


@contextmanager
def one_warning() -> Iterator[None]:
    """Give the first of pntk's warnings within the block, and how many pairs have others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [each for each in caught if issubclass(each.category, PntkWarning)]
    for each in caught:
        if each not in ours:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if ours:
        more = f" (and {len(ours) - 1:,} more pairs of layers)" if len(ours) > 1 else ""
        warnings.warn(f"{ours[0].message}{more}", PntkWarning, stacklevel=4)


def check_memory(
    sides: Sequence[LayerOutputs], samples: int, measure: str, budget: int | str | None
) -> None:
    """Refuse activations that do not fit into a budget.

    Raises:
        ConfigError: says what they take, and what takes less.
    """
    allowed = parse_bytes(budget)
    widths = [max(np.prod(shape) for shape in side.shapes.values()) for side in sides]
    needed = samples * sum(side.bytes_per_sample for side in sides)
    needed += 2 * 8 * samples * int(sum(widths)) + 8 * samples**2 * _SQUARES.get(measure, 0)
    if allowed is not None and needed > allowed:
        raise ConfigError(
            f"memory_budget is {allowed:,} bytes and {samples:,} samples of "
            f"{sum(len(side.names) for side in sides)} layers take about {needed:,} with {measure};"
            " give as much, fewer samples or layers, or measure 'cka' with a minibatch, which "
            "keeps none"
        )


# ---- private -----------------------------------------------------------------------------------


def _minibatch(
    measure: Measure, minibatch: int | None, shaping: Shaping, options: dict[str, Any]
) -> int | None:
    """Return the samples of a minibatch, or None where all activations are kept."""
    if minibatch is not None and not is_count(minibatch, LEAST_UNBIASED):
        raise ConfigError(
            f"minibatch is {minibatch}; expected at least {LEAST_UNBIASED}, or None for all "
            "samples at once"
        )
    rows = shaping.neurons == "activation"
    whole = shaping.samples_per_neuron is None and shaping.max_samples is None
    if minibatch is None or measure not in STREAMED or not rows or not whole:
        return None
    if not options.get("debiased", True):
        raise ConfigError(
            f"debiased=False with minibatch={minibatch}, whose estimate is without bias; expected "
            "minibatch=None with it"
        )
    return minibatch


def _groups(
    left: LayerOutputs, right: LayerOutputs, batches: Batches, group: int, progress: bool
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield the activations of a minibatch of both sides."""
    n = batches.length
    for start, stop in _ranges(n, group, progress, LEAST_UNBIASED):
        parts: list[list[dict[str, Tensor]]] = [[], []]
        for begin in range(start, stop, batches.batch_size):
            batch = batches.range(begin, min(begin + batches.batch_size, stop))
            parts[0].append(left.run(batch))
            if right is not left:
                parts[1].append(right.run(batch))
        first = _joined(parts[0])
        yield first, first if right is left else _joined(parts[1])


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _ranges(length: int, step: int, progress: bool, least: int = 1) -> Iterator[tuple[int, int]]:
    """Yield where groups start and stop; a last one below ``least`` joins the one before."""
    stops = [*range(step, length, step), length]
    if len(stops) > 1 and length - stops[-2] < least:
        del stops[-2]
    starts = [0, *stops[:-1]]
    with tqdm(total=length, unit="sample", disable=not progress) as bar:
        for start, stop in zip(starts, stops, strict=True):
            yield start, stop
            bar.update(stop - start)


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}
