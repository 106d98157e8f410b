"""How much a network minds each wave that is added to its images.

Shapes: n images; c channels; h, w pixels; b batch; m waves; f waves at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pntk.errors import ConfigError, DataError, PntkWarning
from pntk.naming import model_device, unwrap
from pntk.representation.fourier_basis import conjugate_pairs, fourier_basis, frequency_grid
from pntk.representation.fourier_file import FourierMap
from pntk.representation.inference import (
    Batch,
    Criterion,
    Samples,
    fast_layers,
    hits_of,
    largest_output,
    loss_of,
    samples_at_once,
)
from pntk.representation.options import is_number
from pntk.representation.workers import Workers, copies, worker_count

SIGNS = ("fixed", "random")


@torch.no_grad()
def fourier_map(
    model: nn.Module,
    data: Any,
    norm: float = 4.0,
    *,
    criterion: str | Criterion = "error",
    size: int | tuple[int, int] | None = None,
    sign: str = "fixed",
    per_channel: bool = True,
    seed: int = 0,
    phase: float = 0.0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    clamp: tuple[float, float] | None = (0.0, 1.0),
    basis: Tensor | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> FourierMap:
    """Return the error of a network on images with each wave of the Fourier basis added.

    x' = clamp(x + r norm U_ij), with U_ij of length 1 added to each channel. A wave is that of its
    conjugate, so each pair is computed once. The network is in eval mode.

    Args:
        model: takes images [b, c, h, w].
        data: (images, labels), a data set or a DataLoader that does not shuffle.
        norm: length of what is added to a channel, in pixel values.
        criterion: ``error`` for the share of wrong predictions, ``loss`` for cross entropy, or
            ``(outputs, targets) -> mean over the batch``.
        size: of the map: the lowest frequencies, up to about size / 2 either way. None for all:
            the size of the images.
        sign: ``fixed`` for r = 1; ``random`` for r = 1 or -1, drawn for each image and wave.
        per_channel: whether random signs are also drawn for each channel, as in the paper.
        seed: of the signs.
        phase: of the waves, in radians; see :func:`fourier_basis`.
        mean, std: one number or one a channel: images are (pixels - mean) / std, and waves are
            added to pixels. None for images that are pixels.
        clamp: range of pixels; None for no limit.
        basis: [..., h, w], what to add in place of the Fourier basis, times ``norm``; the map
            has the shape of its first axes.
        batch_size: images of a batch; None for as many as keep activations in cache, or the
            loader's own.
        progress: whether to show a progress bar.

    Returns:
        Values float64 [h, w], frequency zero in the centre (row h // 2, column w // 2).

    Raises:
        ConfigError: an argument that cannot work.
        DataError: data that are no images, have no labels, or lie outside ``clamp``.

    Source: Yin, Gontijo Lopes, Shlens, Cubuk, Gilmer (2019), section 4,
    https://arxiv.org/abs/1906.08988

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
    >>> _ = nn.init.constant_(net[1].weight, 1.0)
    >>> images = torch.zeros(3, 1, 2, 2), torch.zeros(3, 1)
    >>> fourier_map(net, images, 1.0, criterion=F.mse_loss, clamp=None, progress=False).values
    array([[0., 0.],
           [0., 4.]])
    """
    if sign not in SIGNS:
        raise ConfigError(f"sign is {sign!r}; expected 'fixed' or 'random'")
    if not (is_number(norm) and norm >= 0):
        raise ConfigError(f"norm is {norm!r}; expected a finite number of at least 0")
    pair = isinstance(clamp, (tuple, list)) and len(clamp) == 2 and all(map(is_number, clamp))
    if clamp is not None and not (pair and clamp[0] < clamp[1]):
        raise ConfigError(f"clamp is {clamp!r}; expected (low, high), low below high, or None")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; expected an integer of at least 0")
    measure = _measure(criterion)
    model = unwrap(model)
    device = model_device(model) if any(True for _ in model.parameters()) else torch.device("cpu")
    first = Samples(data, None, device).first()
    images = _images(first)
    shape = (images.shape[-2], images.shape[-1])
    pixels = _Pixels(mean, std, clamp, images)
    waves, inverse, sides, frequencies = _waves(basis, size, phase, shape)
    waves = (norm * waves).to(images)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with fast_layers(device), Workers(worker_count(model, device)) as workers:
            outputs, each = largest_output(model, first)
            measure(outputs, first.targets)
            at_once = samples_at_once(each)
            if batch_size is None and not hasattr(data, "dataset"):
                batch_size = at_once
            samples = Samples(data, batch_size, device)
            signs = _Signs(sign, per_channel, seed, len(waves))
            found, clean = _evaluate(
                model, samples, waves, pixels, signs, measure, at_once, workers, progress
            )
    finally:
        for module in training:
            module.training = True
    values = found[inverse].reshape(sides)
    if bad := int((~np.isfinite(values)).sum()):
        warnings.warn(
            f"{bad:,} of {values.size:,} values are NaN or infinite; plots leave them out",
            PntkWarning,
            stacklevel=2,
        )
    name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "criterion")
    about = {"norm": norm, "criterion": name, "sign": sign, "phase": phase, "seed": seed,
             "per_channel": per_channel, "images": len(samples), "size": list(shape)}  # fmt: skip
    return FourierMap(values, frequencies, clean, about)


def _evaluate(
    model: nn.Module,
    samples: Samples,
    waves: Tensor,
    pixels: _Pixels,
    signs: _Signs,
    measure: Criterion,
    at_once: int,
    workers: Workers,
    progress: bool,
) -> tuple[npt.NDArray[np.float64], float]:
    """Return the mean of each wave, float64 [m], and of the images as they are."""
    sums, clean, total = np.zeros(len(waves)), 0.0, 0
    models = copies(model, workers.count)
    with tqdm(
        total=len(samples) * len(waves), unit="image", desc="fourier", disable=not progress
    ) as bar:
        for batch in samples:
            images = _images(batch)
            plain = pixels.of(images)
            clean += batch.size * float(measure(_run(model, images, batch, 1), batch.targets))
            step = max(1, at_once // batch.size)

            def at(
                worker: int,
                start: int,
                plain: Tensor = plain,
                batch: Batch = batch,
                step: int = step,
            ) -> list[float]:
                part = waves[start : start + step]
                added = part[:, None, None] * signs.draw(start, len(part), plain)
                images = pixels.back(plain + added).flatten(0, 1)
                outputs = _run(models[worker], images, batch, len(part))
                with bar.get_lock():  # workers share it
                    bar.update(batch.size * len(part))
                return [float(measure(one, batch.targets)) for one in outputs.split(batch.size)]

            found = workers.map(at, range(0, len(waves), step))
            sums += batch.size * np.concatenate(found)
            total += batch.size
    return sums / total, clean / total


def _run(model: nn.Module, images: Tensor, batch: Batch, times: int) -> Tensor:
    outputs = model(images)
    if not isinstance(outputs, Tensor) or len(outputs) != times * batch.size:
        raise DataError(
            f"the model returned {getattr(outputs, 'shape', type(outputs).__name__)} for "
            f"{times * batch.size} images; expected outputs [b, ...]"
        )
    return outputs


class _Pixels:
    """Pixels of images that were normalised, and back with a limit."""

    def __init__(
        self,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        clamp: tuple[float, float] | None,
        images: Tensor,
    ) -> None:
        if (mean is None) != (std is None):
            raise ConfigError("one of mean and std was given; expected both, or neither")
        self._scale = None if mean is None else (
            _channels("mean", mean, images), _channels("std", std, images)
        )  # fmt: skip
        if self._scale is not None and not bool((self._scale[1] > 0).all()):
            raise ConfigError(f"std is {std!r}; expected positive numbers")
        self._clamp = clamp

    def of(self, images: Tensor) -> Tensor:
        """Return pixels.

        Raises:
            DataError: they lie outside the range.
        """
        if self._scale is not None:
            images = images * self._scale[1] + self._scale[0]
        if self._clamp is not None:
            low, high = float(images.min()), float(images.max())
            slack = 1e-3 * (self._clamp[1] - self._clamp[0])
            if not (low >= self._clamp[0] - slack and high <= self._clamp[1] + slack):
                raise DataError(
                    f"pixels run from {low:.4g} to {high:.4g} and clamp is {self._clamp}; give "
                    "mean= and std= of the images, their true range, or clamp=None"
                )
        return images

    def back(self, pixels: Tensor) -> Tensor:
        """Return images; the pixels' memory is used again."""
        if self._clamp is not None:
            pixels = pixels.clamp_(*self._clamp)
        return pixels if self._scale is None else (pixels - self._scale[0]) / self._scale[1]


class _Signs:
    """Random signs, the same for an image and a wave in whichever batch they come."""

    def __init__(self, sign: str, per_channel: bool, seed: int, waves: int) -> None:
        self._per_channel = per_channel
        self._random = (
            [np.random.default_rng([seed, number]) for number in range(waves)]
            if sign == "random"
            else None
        )

    def draw(self, start: int, count: int, images: Tensor) -> Tensor | float:
        """Return signs [f, b, c or 1, 1, 1] with which [f, 1, 1, h, w] are multiplied, or 1."""
        if self._random is None:
            return 1.0
        shape = (len(images), images.shape[1] if self._per_channel else 1, 1, 1)
        drawn = [np.where(r.random(shape) < 0.5, -1.0, 1.0) for r in
                 self._random[start : start + count]]  # fmt: skip
        return torch.from_numpy(np.stack(drawn)).to(images)


def _waves(
    basis: Tensor | None, size: int | tuple[int, int] | None, phase: float, shape: tuple[int, int]
) -> tuple[Tensor, npt.NDArray[np.int64], tuple[int, ...], npt.NDArray[np.int64] | None]:
    """Return waves [m, h, w], the wave of each entry of the map, its shape, its frequencies."""
    if basis is not None:
        if size is not None or phase:
            raise ConfigError("basis beside size or phase; the basis says what is added")
        if not isinstance(basis, Tensor) or not basis.numel():
            raise ConfigError(
                f"basis is {getattr(basis, 'shape', None)} ({type(basis).__name__}); expected a "
                f"tensor [..., {shape[0]}, {shape[1]}] of at least one wave"
            )
        if basis.dim() < 3 or tuple(basis.shape[-2:]) != shape or not bool(basis.isfinite().all()):
            raise ConfigError(
                f"basis has shape {tuple(basis.shape)}, or NaN or infinity; expected finite "
                f"[..., {shape[0]}, {shape[1]}], as the images"
            )
        count = basis[..., 0, 0].numel()
        return basis.flatten(0, -3), np.arange(count), tuple(basis.shape[:-2]), None
    sides = (
        shape if size is None else (size, size) if isinstance(size, (int, float)) else tuple(size)
    )
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    fits = len(sides) == 2 and whole and all(1 <= a <= b for a, b in zip(sides, shape, strict=True))
    if not fits:
        raise ConfigError(
            f"size is {size!r}; expected one or two numbers from 1 to {shape[0]} and {shape[1]}, "
            "as the images have no more frequencies"
        )
    frequencies = frequency_grid((sides[0], sides[1]))
    needed, inverse = conjugate_pairs(frequencies.reshape(-1, 2), shape)
    return fourier_basis(shape, needed, phase=phase), inverse, sides, frequencies


def _measure(criterion: str | Criterion) -> Criterion:
    if criterion == "error":
        return lambda outputs, targets: 1 - hits_of(outputs, targets).double().mean()
    if criterion == "loss":
        criterion = F.cross_entropy
    if not callable(criterion):
        raise ConfigError(f"criterion is {criterion!r}; expected 'error', 'loss' or a callable")
    given = criterion
    return lambda outputs, targets: loss_of(given, outputs, targets)


def _images(batch: Batch) -> Tensor:
    """Return the images of a batch.

    Raises:
        DataError: the inputs are no images.
    """
    images = batch.args[0] if len(batch.args) == 1 and not batch.kwargs else None
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        shape = getattr(images, "shape", "several inputs")
        raise DataError(f"inputs are {shape}; expected images [b, c, h, w] of floats")
    return images


def _channels(name: str, given: Any, images: Tensor) -> Tensor:
    try:
        values = torch.as_tensor(given, dtype=images.dtype, device=images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} is {given!r}; expected one number, or one a channel") from error
    values = values.reshape(-1, 1, 1)
    if len(values) not in (1, images.shape[1]) or not bool(values.isfinite().all()):
        raise ConfigError(
            f"{name} is {given!r}; expected one finite number, or one for each of "
            f"{images.shape[1]} channels"
        )
    return values
