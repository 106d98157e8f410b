"""Refuse contents of a report that cannot be drawn, before any work.

Shapes: m samples of the kernel; h, w pixels of an image.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pntk.errors import ConfigError
from pntk.report.content import Panel, Report, Surrogate

COVERAGE_KEYS = ("name", "shape", "count", "rule", "module")


def check_report(report: Report) -> None:
    """Refuse contents that cannot be drawn, before any work.

    Raises:
        ConfigError: Kernel, labels, spectrum, coverage or an image are malformed.
    """
    if report.kernel is not None:
        _check_kernel(np.asarray(report.kernel))
        if report.kernel_labels is not None:
            _check_labels(np.asarray(report.kernel_labels), len(report.kernel), report.class_names)
    if report.spectrum is not None:
        _check_spectrum(np.asarray(report.spectrum))
    _check_coverage(report.coverage)
    for panel in report.panels:
        _check_panel(panel)
    for surrogate in report.surrogates:
        _check_surrogate(surrogate)
    for image, owner in _images(report):
        check_image(image, owner)


def _images(report: Report) -> Iterator[tuple[NDArray[Any] | None, str]]:
    for query in report.queries:
        yield query.image, f"query {query.index}"
        for found in (*query.neighbours, *query.influential, *query.opposing):
            yield found.image, f"neighbour {found.index}"
    for suspect in report.mislabelled:
        yield suspect.image, f"row {suspect.index}"


def check_image(image: NDArray[Any] | None, owner: str) -> None:
    """Refuse an array that is no picture."""
    if image is None:
        return
    shape = np.shape(image)
    picture = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    if not picture or 0 in shape:
        raise ConfigError(
            f"the image of {owner} has shape {list(shape)}, but [h, w], [h, w, 1] or [h, w, 3] "
            "was expected: move the channels last with image.transpose(1, 2, 0)"
        )


def _check_kernel(kernel: NDArray[Any]) -> None:
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ConfigError(
            f"kernel has shape {list(kernel.shape)}, but [m, m] was expected: "
            "pass the kernel of one set of samples with itself"
        )
    if not np.isfinite(kernel).all():
        raise ConfigError(
            f"kernel holds {np.count_nonzero(~np.isfinite(kernel))} values that are NaN or "
            "infinite: drop those samples"
        )


def _check_labels(labels: NDArray[Any], samples: int, class_names: Sequence[str] | None) -> None:
    if labels.shape != (samples,):
        raise ConfigError(
            f"kernel_labels has shape {list(labels.shape)}, but the kernel has {samples} samples: "
            "pass one label a row"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"kernel_labels has dtype {labels.dtype}, but integers were expected: "
            "pass class numbers, and their names in class_names"
        )
    if class_names is None or samples == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(class_names):
        raise ConfigError(
            f"kernel_labels run from {low} to {high}, but class_names has {len(class_names)} "
            "entries: name every class, or leave class_names out"
        )


def _check_spectrum(spectrum: NDArray[Any]) -> None:
    if spectrum.ndim != 1 or not np.isfinite(spectrum).all():
        raise ConfigError(
            f"spectrum has shape {list(spectrum.shape)} and "
            f"{np.count_nonzero(~np.isfinite(spectrum))} values that are NaN or infinite, but "
            "[r] finite eigenvalues were expected: pass those of a finite kernel"
        )
    if spectrum.size and spectrum.max() <= 0:
        raise ConfigError(
            f"the largest eigenvalue of spectrum is {spectrum.max()}, but a kernel has a "
            "positive one: check the kernel, or leave the spectrum out"
        )


def _check_surrogate(surrogate: Surrogate) -> None:
    examples = surrogate.report.examples
    for what in ("ours", "network", "right"):
        shape = np.shape(getattr(surrogate, what))
        if shape != (examples,):
            raise ConfigError(
                f"{what} of the surrogate {surrogate.name!r} has shape {list(shape)}; expected one "
                f"entry for each of the {examples} examples that it was compared on"
            )
    for what in ("ours", "network"):
        values = np.asarray(getattr(surrogate, what))
        if not ((values >= 0) & (values <= 1)).all():
            raise ConfigError(
                f"{what} of the surrogate {surrogate.name!r} runs from {values.min():.3g} to "
                f"{values.max():.3g}; expected probabilities, from 0 to 1"
            )


def _check_panel(panel: Panel) -> None:
    if panel.figure is not None and not panel.figure.startswith(b"\x89PNG"):
        raise ConfigError(
            f"the figure of {panel.title!r} starts with {panel.figure[:8]!r}; expected the bytes "
            "of a PNG"
        )
    for row in panel.rows:
        if len(row) != len(panel.columns):
            raise ConfigError(
                f"a row of {panel.title!r} has {len(row)} cells; expected {len(panel.columns)}, "
                "one a column"
            )


def _check_coverage(coverage: Sequence[Mapping[str, Any]]) -> None:
    for row in coverage:
        missing = [key for key in COVERAGE_KEYS if key not in row]
        if missing:
            raise ConfigError(
                f"the coverage row {dict(row)} lacks {', '.join(missing)}: "
                f"give every row the keys {', '.join(COVERAGE_KEYS)}"
            )
