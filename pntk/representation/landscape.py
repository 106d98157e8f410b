"""The loss on a line or a plane through the weights of a network.

Shapes: nx, ny grid points; g grid points at once; b batch.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from xxhash import xxh3_64

from pntk.batch import tensors
from pntk.describe import describe
from pntk.errors import ConfigError, PntkWarning
from pntk.memory import required_bytes
from pntk.naming import fingerprint, model_device, unwrap
from pntk.representation.directions import Direction
from pntk.representation.inference import (
    CACHE_BYTES,
    Batch,
    Criterion,
    Samples,
    fast_layers,
    hits_of,
    largest_output,
    loss_of,
    samples_at_once,
)
from pntk.representation.landscape_file import Landscape, Progress
from pntk.representation.landscape_points import (
    InThreads,
    OneByOne,
    Plane,
    Together,
    statistics_layers,
)
from pntk.representation.options import is_number
from pntk.representation.workers import Workers, worker_count

FEWEST_AT_ONCE, MOST_AT_ONCE = 4, 16  # grid points
SMALL = 2**20  # parameters: with more, all time goes into products


@torch.no_grad()
def loss_landscape(
    model: nn.Module,
    data: Any,
    x_direction: Direction,
    y_direction: Direction | None = None,
    *,
    criterion: Criterion = F.cross_entropy,
    x_range: tuple[float, float] = (-1.0, 1.0),
    y_range: tuple[float, float] | None = None,
    points: int | tuple[int, int] = 21,
    accuracy: bool = False,
    recompute_batchnorm: bool = False,
    trajectory: npt.ArrayLike | None = None,
    path: str | os.PathLike[str] | None = None,
    save_every: float = 10.0,
    together: bool | None = None,
    chunk: int | None = None,
    batch_size: int | None = None,
    memory_budget: int | str = "1GB",
    progress: bool = True,
) -> Landscape:
    """Return the mean loss at theta + x d_x + y d_y for each point of a grid.

    The network is in eval mode and is left as it was. BatchNorm uses the statistics kept from
    training, as in the paper.

    Args:
        model: whose weights are theta.
        data: (inputs, targets), a data set or a DataLoader that does not shuffle, as for
            :meth:`pntk.Featurizer.featurize`.
        x_direction: name -> tensor for each parameter, and for buffers that move along; see
            :mod:`pntk.representation.directions`.
        y_direction: None for a line.
        criterion: ``(outputs, targets) -> mean over the batch``; batches count by their samples.
        x_range, y_range: first and last coordinate; ``y_range`` is ``x_range`` unless given.
        points: of the grid along each direction, or (nx, ny); at least 2.
        accuracy: whether to count right predictions too.
        recompute_batchnorm: estimate the statistics of BatchNorm from the data at each point, as
            the mean over batches: one more pass over the data for each.
        trajectory: [T, 2] coordinates to draw on the contours, kept with the result.
        path: .npz file that has the points as they come; the same call goes on from there.
        save_every: seconds between writes to ``path``.
        together: whether points go through the network at once, with their weights side by side
            (see :mod:`pntk.representation.stacked`); None for networks of up to 2^20
            parameters on a GPU. On a CPU one at a time was as fast or faster where measured.
        chunk: points at once; None for as many as the memory allows, at most 16.
        batch_size: samples a batch; None for as many as keep activations in cache, or the
            loader's own.
        memory_budget: for weights and activations of the points at once, by estimate, and for data
            kept at hand.
        progress: whether to show a progress bar.

    Returns:
        Losses, float64 [nx, ny] or [nx]. A loss that is not finite stays so, with a warning.

    Raises:
        ConfigError: directions, ranges or other arguments that cannot work, or a file of another
            landscape.
        DataError: data without targets, or a criterion that does not return one number.
        ModelError: no parameters, or on several devices.
        StoreError: the file is damaged.

    Source: Li, Xu, Taylor, Studer, Goldstein (2018), https://arxiv.org/abs/1712.09913

    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(net.weight, 2.0)
    >>> data = torch.ones(4, 1), torch.zeros(4, 1)
    >>> line = {"weight": torch.ones(1, 1)}
    >>> options = dict(criterion=F.mse_loss, points=3, progress=False)
    >>> loss_landscape(net, data, line, **options).losses  # (2 + x)^2
    array([1., 4., 9.])
    """
    model = unwrap(model)
    xs, ys = _coordinates(x_range, y_range, points, y_direction is not None)
    _check_counts(chunk, save_every)
    budget = required_bytes(memory_budget)
    plane = Plane(model, x_direction, y_direction)
    device = model_device(model)
    if recompute_batchnorm and not statistics_layers(model):
        raise ConfigError(
            f"recompute_batchnorm=True and {type(model).__name__} has no BatchNorm that keeps "
            "statistics; leave it out"
        )
    if together and recompute_batchnorm:
        raise ConfigError(
            "together=True beside recompute_batchnorm=True, which changes statistics point by "
            "point; leave one out"
        )
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with fast_layers(device):
            first = Samples(data, None, device).first()
            each = _try_once(model, first, criterion, accuracy)
            if batch_size is None and not hasattr(data, "dataset"):
                batch_size = samples_at_once(each)
            samples = Samples(data, batch_size, device)
            about = {
                **_about(model, plane, criterion, samples),
                "accuracy": accuracy,
                "recompute_batchnorm": samples.batch_size if recompute_batchnorm else False,
            }
            done = Progress(path, xs, ys, about, accuracy, trajectory)
            chunk = _at_once(chunk, plane.numbers, each * samples.batch_size, budget)
            shared = len(done.missing()) > 0 and samples.keep(budget // 2)
            # a data set that is read again for each point may not bear several threads
            with Workers(worker_count(model, device) if shared else 1) as workers:
                evaluate = _evaluator(
                    plane,
                    criterion,
                    accuracy,
                    recompute_batchnorm,
                    together,
                    chunk,
                    next(iter(samples)),
                    workers,
                )
                each_time = chunk if isinstance(evaluate, Together) else chunk * workers.count
                _fill(done, evaluate, samples, each_time, save_every, progress)
    finally:
        for module in training:
            module.training = True
    found = done.finished(together=isinstance(evaluate, Together))
    _warn_of_infinities(found)
    return found


def _fill(
    done: Progress,
    evaluate: InThreads | Together,
    samples: Samples,
    chunk: int,
    save_every: float,
    progress: bool,
) -> None:
    left = done.missing()
    saved = time.monotonic()
    with tqdm(
        total=done.total,
        initial=done.total - len(left),
        unit="point",
        desc="landscape",
        disable=not progress,
    ) as bar:
        try:
            for start in range(0, len(left), chunk):
                part = left[start : start + chunk]
                done.put(part, *evaluate(*done.coordinates(part), samples))
                bar.update(len(part))
                if time.monotonic() - saved >= save_every:
                    done.save()
                    saved = time.monotonic()
        finally:
            done.save()


def _evaluator(
    plane: Plane,
    criterion: Criterion,
    accuracy: bool,
    recompute: bool,
    together: bool | None,
    chunk: int,
    first: Batch,
    workers: Workers,
) -> InThreads | Together:
    """Return what evaluates points: at once where wanted, and equal to one by one in a trial.

    Raises:
        ConfigError: ``together`` was asked for and does not work.
    """
    each = [OneByOne(plane, criterion, accuracy, recompute) for _ in range(workers.count)]
    alone = InThreads(each, workers)
    if together is None:
        small = chunk > 1 and plane.numbers <= SMALL and not recompute
        wanted = small and next(iter(plane.parts.values())).start.is_cuda
    else:
        wanted = together
    if not wanted:
        return alone
    at_once = Together(plane, criterion, accuracy)
    values = np.linspace(0.0, 0.01, chunk)
    trial = values, None if plane.line else values[::-1].copy()
    try:
        found, expected = at_once(*trial, [first])[0], alone(*trial, [first])[0]
        if not np.allclose(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise RuntimeError(f"losses are {found[:3]}, and {expected[:3]} one by one")
    except Exception as error:
        if together:
            reason = str(error).strip().splitlines()[0][:200]
            raise ConfigError(
                f"together=True and this model or criterion does not run so ({reason}); use "
                "together=None"
            ) from error
        return alone
    return at_once


def _try_once(model: nn.Module, first: Batch, criterion: Criterion, accuracy: bool) -> int:
    """Run the first samples as they are; return the bytes a sample of the largest output."""
    outputs, each = largest_output(model, first)
    loss_of(criterion, outputs, first.targets)
    if accuracy:
        hits_of(outputs, first.targets)
    return each


def _about(
    model: nn.Module, plane: Plane, criterion: Criterion, samples: Samples
) -> dict[str, Any]:
    """Return what tells a landscape from others: weights, directions, criterion and data."""
    data = xxh3_64()
    for tensor in tensors(tuple(samples.first())):
        data.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {
        "weights": fingerprint(model),
        "directions": plane.digest(),
        "criterion": describe(criterion),
        "samples": len(samples),
        "first samples": data.hexdigest(),
    }


def _at_once(chunk: int | None, numbers: int, activations: int, budget: int) -> int:
    """Return how many grid points to evaluate at once."""
    if chunk is not None:
        return chunk
    each = 4 * numbers + 4 * activations  # inputs and outputs of a layer, and copies of them
    in_cache = max(FEWEST_AT_ONCE, CACHE_BYTES // activations)
    return max(1, min(MOST_AT_ONCE, in_cache, budget // 2 // each))


def _coordinates(
    x_range: Sequence[float],
    y_range: Sequence[float] | None,
    points: int | tuple[int, int],
    plane: bool,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
    if not plane and (y_range is not None or not isinstance(points, int)):
        raise ConfigError(
            "there is a y_range, or points for two directions, and no y_direction; give one, or "
            "leave those out"
        )
    counts = (points, points) if isinstance(points, int) else tuple(points)
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
    if len(counts) != 2 or not whole or min(counts) < 2:
        raise ConfigError(f"points is {points!r}; expected at least 2, or two such numbers")
    xs = np.linspace(*_range("x_range", x_range), counts[0])
    if not plane:
        return xs, None
    return xs, np.linspace(*_range("y_range", x_range if y_range is None else y_range), counts[1])


def _range(name: str, given: Sequence[float]) -> tuple[float, float]:
    pair = isinstance(given, (tuple, list, np.ndarray)) and len(given) == 2
    if not pair or not all(is_number(end) for end in given) or not given[0] < given[1]:
        raise ConfigError(f"{name} is {given!r}; expected (low, high), finite, low below high")
    return float(given[0]), float(given[1])


def _check_counts(chunk: int | None, save_every: float) -> None:
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ConfigError(f"chunk is {chunk!r}; expected an integer of at least 1")
    if not isinstance(save_every, Real) or not save_every >= 0:
        raise ConfigError(f"save_every is {save_every!r}; expected seconds, at least 0")


def _warn_of_infinities(found: Landscape) -> None:
    bad = np.argwhere(~np.isfinite(found.losses))
    if not len(bad):
        return
    axes = [found.x] if found.y is None else [found.x, found.y]
    first = [float(axis[place]) for axis, place in zip(axes, bad[0], strict=True)]
    warnings.warn(
        f"{len(bad):,} of {found.losses.size:,} losses are NaN or infinite, the first at "
        f"{', '.join(f'{value:.4g}' for value in first)}; plots leave them out: choose a smaller "
        "range",
        PntkWarning,
        stacklevel=3,
    )
