"""Plots and thumbnails, each as the bytes of a PNG.

Shapes: m samples; r eigenvalues; h, w pixels.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pntk.extras import require
from pntk.figures import BLUE, new_figure, png
from pntk.report.summary import FloatArray, cumulative_share, significant_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICK_LABELS = 30  # as many class names fit along an axis
NAME_LENGTH = 14
THUMBNAIL_SIDE = 192


def kernel_plot(
    cosine: FloatArray, labels: NDArray[Any] | None, class_names: list[str] | None
) -> bytes:
    """Draw a kernel as a heat map, rows and columns sorted by class.

    The colours span the 1st to the 99th percentile of the off-diagonal entries, since the
    diagonal of ones would otherwise take the whole range.

    Args:
        cosine: [m, m], m at least 1.
        labels: [m] ints, or None to keep the order.
        class_names: Name of class 0, 1, ..., or None for the numbers.
    """
    samples = len(cosine)
    if labels is not None:
        order = np.argsort(labels, kind="stable")
        cosine, labels = cosine[np.ix_(order, order)], labels[order]
    off_diagonal = cosine[~np.eye(samples, dtype=bool)] if samples > 1 else cosine
    low, high = np.quantile(off_diagonal, [0.01, 0.99])
    with require("matplotlib.style").context("default"):
        figure = new_figure()
        axes = figure.subplots()
        image = axes.imshow(cosine, cmap="viridis", vmin=low, vmax=high)
        bar = figure.colorbar(image, ax=axes, extend="both", shrink=0.85, pad=0.03)
        bar.set_label("cosine similarity")
        if labels is None:
            axes.set_xlabel("sample")
            axes.set_ylabel("sample")
        else:
            _mark_classes(axes, labels, class_names)
        return png(figure)


def spectrum_plot(spectrum: NDArray[Any]) -> bytes:
    """Draw eigenvalues against their rank, and below it the share that the first ones hold.

    Args:
        spectrum: [r] eigenvalues, at least one of them positive.
    """
    kept = significant_spectrum(spectrum)
    ranks = np.arange(1, len(kept) + 1)
    style = {"color": BLUE, "marker": "o", "markersize": 3, "linewidth": 1.2}
    with require("matplotlib.style").context("default"):
        figure = new_figure()
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        top.loglog(ranks, kept, **style)
        top.set_ylabel("eigenvalue")
        bottom.semilogx(ranks, 100 * cumulative_share(kept), **style)
        bottom.axhline(90, color="0.45", linewidth=1, linestyle="--")
        bottom.annotate(
            "90%",
            (1, 90),
            xycoords=("axes fraction", "data"),
            ha="right",
            xytext=(-4, -4),
            textcoords="offset points",
            va="top",
            color="0.35",
        )
        bottom.set(ylim=(0, 104), ylabel="cumulative share (%)", xlabel="rank")
        for axes in (top, bottom):
            axes.grid(True, which="major", color="0.88", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        return png(figure)


def thumbnail(image: NDArray[Any]) -> bytes:
    """Draw an image, one pixel a pixel, shrunk by averaging when it is large.

    Args:
        image: [h, w], [h, w, 1] or [h, w, 3]. Values of type uint8, booleans, and values within
            [0, 1] are taken as they are, anything else is stretched to its own range. Values
            that are NaN or infinite are black.
    """
    pixels = _shrink(_to_unit_range(np.asarray(image)))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    rgb = np.broadcast_to(np.rint(255 * pixels).astype(np.uint8), (*pixels.shape[:2], 3))
    buffer = io.BytesIO()
    require("matplotlib.image").imsave(buffer, rgb, format="png", metadata={"Software": None})
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """Write a PNG as the source of an ``img`` element."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _mark_classes(axes: Axes, labels: NDArray[Any], class_names: list[str] | None) -> None:
    """Draw lines between the classes of sorted labels, and name each at its middle."""
    classes, starts = np.unique(labels, return_index=True)
    ends = np.append(starts[1:], len(labels))
    for edge in starts[1:] - 0.5:
        axes.axhline(edge, color="white", linewidth=0.8)
        axes.axvline(edge, color="white", linewidth=0.8)
    ticks: list[float] = []
    names: list[str] = []
    gap = len(labels) / TICK_LABELS
    for number, middle in zip(classes, (starts + ends - 1) / 2, strict=True):
        if not ticks or middle - ticks[-1] >= gap:
            ticks.append(middle)
            names.append(_tick_name(str(number) if class_names is None else class_names[number]))
    long = max(map(len, names)) > 3
    axes.set_xticks(ticks, names, rotation=90 if long else 0)
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    axes.set_xlabel("class")
    axes.set_ylabel("class")


def _tick_name(name: str) -> str:
    """Shorten a name, and keep matplotlib from reading dollar signs as mathematics."""
    short = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
    return short.replace("$", r"\$")


def _to_unit_range(image: NDArray[Any]) -> FloatArray:
    if image.dtype == np.uint8:
        return image / 255.0
    pixels = image.astype(np.float64)
    finite = np.isfinite(pixels)
    if not finite.any():
        return np.zeros_like(pixels)
    low, high = pixels[finite].min(), pixels[finite].max()
    if low < 0 or high > 1:
        pixels = (pixels - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.clip(np.where(finite, pixels, 0.0), 0, 1)


def _shrink(pixels: FloatArray) -> FloatArray:
    """Average blocks of pixels until the longer side is at most ``THUMBNAIL_SIDE``."""
    height, width = pixels.shape[:2]
    factor = -(-max(height, width) // THUMBNAIL_SIDE)
    if factor == 1:
        return pixels
    rows, columns = np.arange(0, height, factor), np.arange(0, width, factor)
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=0), columns, axis=1)
    sizes = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    means: FloatArray = sums / sizes.reshape(sizes.shape + (1,) * (pixels.ndim - 2))
    return means
