"""Pictures of directions and of their spectrum.

Shapes: r directions of [c, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pntk.errors import ConfigError, DataError
from pntk.extras import require
from pntk.figures import BLUE, new_figure
from pntk.nads.nads import NADs, as_nads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VIEWS = ("pixel", "fourier")
TILE = 1.6  # inches


def draw_directions(
    nads: NADs,
    indices: int | slice | Sequence[int] = 10,
    view: str = "pixel",
    *,
    columns: int = 5,
    title: str | None = None,
) -> Figure:
    """Draw directions as images, or the power of their Fourier transform, zero in the middle.

    Titles are the numbers of directions, counted from 0. One channel is drawn in diverging colours
    around zero, three as colours around grey, and of other numbers the mean over channels; powers
    are summed over channels.

    Args:
        nads: of images [c, h, w] or [h, w]; a vector is drawn as a line.
        indices: how many of the first, a slice, or numbers.
        view: ``pixel`` or ``fourier``.
        columns: of the grid.
        title: None for the name of the networks.

    Raises:
        ConfigError, DataError: no such directions, or no images.
    """
    as_nads("nads", nads)
    if view not in VIEWS:
        raise ConfigError(f"view is {view!r}; expected one of {', '.join(VIEWS)}")
    numbers = _numbers(indices, len(nads))
    images = [image_of(nads[number].detach().cpu(), view) for number in numbers]
    columns = min(max(1, columns), len(numbers))
    rows = math.ceil(len(numbers) / columns)
    height, width = images[0].shape[:2]
    aspect = min(3.0, max(1 / 3, height / width))
    with require("matplotlib.style", "a picture").context("default"):
        figure = new_figure(TILE * columns, (TILE * aspect + 0.25) * rows + 0.35)
        figure.suptitle(title if title is not None else _title(nads, view), fontsize=10)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, number, image in zip(grid.flat, numbers, images, strict=False):
            most = float(np.abs(image).max()) or 1.0
            if image.ndim == 3:
                axes.imshow(0.5 + image / (2 * most))
            elif view == "fourier":
                axes.imshow(image, cmap="viridis", vmin=0, vmax=most)
            else:
                axes.imshow(image, cmap="BrBG", vmin=-most, vmax=most)
            axes.set_title(str(number), fontsize=8, pad=2)
            if height == 1:
                axes.set_aspect("auto")
    return figure


def image_of(direction: Tensor, view: str = "pixel") -> np.ndarray:
    """Return a direction as [h, w], or [h, w, 3] of three channels; or its Fourier power [h, w].

    Raises:
        DataError: more dimensions than an image has.
    """
    if direction.dim() > 3:
        raise DataError(
            f"a direction has shape {tuple(direction.shape)}; expected [c, h, w], [h, w] or [d]"
        )
    image = direction.reshape(*[1] * (3 - direction.dim()), *direction.shape).double()
    if view == "fourier":
        power = torch.fft.fft2(image).abs().square().sum(0)
        return torch.fft.fftshift(power).numpy()
    if len(image) == 3:
        return image.permute(1, 2, 0).numpy()
    return image.mean(0).numpy()


def draw_spectrum(
    nads: NADs | Sequence[NADs], *, normalize: bool = False, title: str | None = None
) -> Figure:
    """Draw singular values against rank, on a logarithmic axis.

    Args:
        nads: one, or several to compare.
        normalize: whether to divide by the root of the sum of squares, for other numbers of
            networks.
        title: None for the name of the networks.
    """
    several = [nads] if isinstance(nads, NADs) else [as_nads("nads", each) for each in nads]
    if not several:
        raise ConfigError("there are no NADs to draw; expected at least one")
    with require("matplotlib.style", "a picture").context("default"):
        figure = new_figure(height=3.6)
        axes = figure.subplots()
        for number, each in enumerate(several):
            values = each.singular_values.detach().double().cpu().numpy()
            if normalize:
                values = values / np.linalg.norm(values)
            kept = values > 0
            ranks = np.arange(1, len(values) + 1)
            style: dict[str, Any] = {"color": BLUE} if len(several) == 1 else {}
            label = each.name or f"set {number + 1}"
            marker = "o" if len(values) <= 50 else None
            axes.semilogy(ranks[kept], values[kept], label=label, marker=marker, **style)
        axes.set_xlabel("rank")
        axes.set_ylabel("share of the norm" if normalize else "singular value")
        axes.grid(visible=True, alpha=0.3)
        if len(several) > 1:
            axes.legend()
        axes.set_title(title if title is not None else _spectrum_title(several), fontsize=10)
    return figure


def _spectrum_title(several: Sequence[NADs]) -> str:
    names = [each.name for each in several if each.name]
    return f"Spectrum of {', '.join(names)}" if names else "Spectrum"


def _title(nads: NADs, view: str) -> str:
    what = "Fourier power of directions" if view == "fourier" else "Directions"
    return f"{what} of {nads.name}" if nads.name else what


def _numbers(indices: Any, length: int) -> list[int]:
    """Return the numbers of directions to draw, counted from 0.

    Raises:
        ConfigError: none, or some that are not there.
    """
    if isinstance(indices, int) and not isinstance(indices, bool) and indices > 0:
        return list(range(min(indices, length)))
    if isinstance(indices, slice):
        chosen = list(range(length))[indices]
    else:
        chosen = list(indices) if isinstance(indices, (list, tuple, range)) else []
    if not chosen or not all(isinstance(i, int) and -length <= i < length for i in chosen):
        raise ConfigError(
            f"indices are {indices!r}; expected how many of the first, a slice, or numbers below "
            f"{length}"
        )
    return [i % length for i in chosen]
