"""Matrices of samples and neurons from the activations of layers.

Shapes: n samples; c channels; h, w height and width of a map; s positions, such as h w; g matrices;
r rows and d neurons of each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pntk.errors import ConfigError, DataError

NEURONS = ("activation", "filter", "per_sample", "per_position")
POOLINGS = ("avg_pool", "nearest", "bilinear", "dft")


def matrices(
    x: Tensor,
    neurons: str = "activation",
    *,
    size: int | tuple[int, int] | None = None,
    pooling: str = "avg_pool",
    channel_axis: int | None = None,
    name: str = "x",
) -> Tensor:
    """Return activations as matrices [g, r, d] of rows and neurons.

    Rows [n, d] are one matrix, whatever ``neurons`` and ``size``. Of maps [n, c, h, w], or with any
    other number of axes of positions,

    ============== ============ ============= =============
    neurons        matrices g   rows r        neurons d
    ============== ============ ============= =============
    activation     1            n             c h w
    filter         1            n h w         c
    per_sample     n            c             h w
    per_position   h w          n             c
    ============== ============ ============= =============

    Args:
        x: activations, the samples first.
        neurons: see above.
        size: height and width of the maps to compare instead, or one number for both.
        pooling: how they are made smaller, see :func:`downsample`.
        channel_axis: where c is; None for axis 1, or the last of three axes [n, t, c].
        name: what messages call x.

    Raises:
        ConfigError: unknown neurons or pooling, no such axis.
        DataError: maps that cannot be down-sampled.
    """
    check_neurons(neurons)
    if x.dim() == 2:
        return x[None]
    axis = channel_axis
    if axis is None:
        axis = 2 if x.dim() == 3 else 1
    if not -x.dim() <= axis < x.dim() or axis % x.dim() == 0:
        raise ConfigError(
            f"channel_axis is {channel_axis} and {name} has shape {tuple(x.shape)}; expected "
            f"1 to {x.dim() - 1}, or negative from the end"
        )
    x = x.movedim(axis, 1)
    if size is not None:
        x = downsample(x, size, pooling, name)
    x = x.flatten(2)  # [n, c, s]
    if neurons == "activation":
        return x.flatten(1)[None]
    if neurons == "filter":
        return x.movedim(1, 2).flatten(0, 1)[None]
    return x if neurons == "per_sample" else x.permute(2, 0, 1)


def downsample(
    x: Tensor, size: int | tuple[int, int], pooling: str = "avg_pool", name: str = "x"
) -> Tensor:
    """Return maps [n, c, h, w] as maps of fewer pixels, in floating point.

    Args:
        x: [n, c, h, w].
        size: height and width, or one number for both; at most those of x.
        pooling: ``avg_pool`` takes means of windows; ``nearest`` one pixel each; ``bilinear``
            interpolates between four; ``dft`` leaves out high frequencies, and keeps the mean.
        name: what messages call x.

    Raises:
        ConfigError: unknown pooling, or a size that is no number of pixels.
        DataError: no maps, or smaller ones.

    >>> downsample(torch.arange(16.0).reshape(1, 1, 4, 4), 2)
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """
    target = target_size(size, pooling)
    if x.dim() != 4:
        raise DataError(
            f"{name} has shape {tuple(x.shape)} and cannot be down-sampled to {target[0]} x "
            f"{target[1]}; expected maps [n, c, h, w]: leave size out"
        )
    h, w = x.shape[2:]
    if target[0] > h or target[1] > w:
        raise DataError(
            f"the maps of {name} have {h} x {w} pixels and cannot be down-sampled to {target[0]} x "
            f"{target[1]}; give size={(min(h, target[0]), min(w, target[1]))} or less"
        )
    x = x if x.is_floating_point() else x.double()
    if target == (h, w):
        return x
    if pooling == "avg_pool":
        return F.adaptive_avg_pool2d(x, target)
    if pooling == "dft":
        return _low_frequencies(x, *target)
    return F.interpolate(x, size=target, mode=pooling)


def check_neurons(neurons: Any) -> None:
    """Refuse what is none of ``NEURONS``."""
    if neurons not in NEURONS:
        raise ConfigError(f"neurons is {neurons!r}; expected one of {', '.join(NEURONS)}")


def target_size(size: Any, pooling: Any) -> tuple[int, int]:
    """Return height and width to which maps are down-sampled.

    Raises:
        ConfigError: unknown pooling, or a size that is no number of pixels.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
    pair = isinstance(size, (tuple, list)) and len(size) == 2
    sides = tuple(size) if pair else (size, size)
    if not all(type(side) is int and side >= 1 for side in sides):
        raise ConfigError(f"size is {size!r}; expected a number of pixels, or (height, width)")
    return sides[0], sides[1]


def _low_frequencies(x: Tensor, height: int, width: int) -> Tensor:
    spectrum = torch.fft.fft2(x, norm="forward")
    for axis, kept in ((2, height), (3, width)):
        length = x.shape[axis]
        numbers = torch.fft.fftfreq(length, 1 / length).round()
        index = ((numbers >= -kept / 2) & (numbers < kept / 2)).nonzero()[:, 0]
        spectrum = spectrum.index_select(axis, index.to(x.device))
    # the lowest frequency of an even size is kept without its partner, hence .real
    return torch.fft.ifft2(spectrum, norm="forward").real


def thinned(
    x: Tensor, y: Tensor, samples_per_neuron: float | None, max_samples: int | None
) -> tuple[Tensor, Tensor]:
    """Return matrices [g, r, d] and [g, r, e] with fewer rows, the same of both, evenly spaced.

    Args:
        x: [g, r, d].
        y: [g, r, e].
        samples_per_neuron: keep as many rows for each neuron of the wider side; 10 is the advice of
            ultimate-anatome for CCA.
        max_samples: keep at most as many.

    Raises:
        ConfigError: not positive.
        DataError: there are fewer rows than ``samples_per_neuron`` asks for.
    """
    rows = x.shape[1]
    kept = rows_kept(rows, max(x.shape[2], y.shape[2]), samples_per_neuron, max_samples)
    if kept == rows:
        return x, y
    index = torch.arange(kept, device=x.device) * rows // kept
    return x[:, index], y[:, index.to(y.device)]


def rows_kept(
    rows: int, widest: int, samples_per_neuron: float | None, max_samples: int | None
) -> int:
    """Return how many rows :func:`thinned` keeps, of sides of up to ``widest`` neurons."""
    kept = rows
    if samples_per_neuron is not None:
        if not samples_per_neuron > 0:
            raise ConfigError(f"samples_per_neuron is {samples_per_neuron}; expected more than 0")
        kept = max(1, round(samples_per_neuron * widest))
        if kept > rows:
            raise DataError(
                f"there are {rows:,} rows and {widest:,} neurons; samples_per_neuron="
                f"{samples_per_neuron:g} needs {kept:,} rows: give more samples, a smaller size, "
                "or neurons='filter' for maps"
            )
    if max_samples is not None:
        if max_samples < 2:
            raise ConfigError(f"max_samples is {max_samples}; expected at least 2")
        kept = min(kept, max_samples)
    return kept
