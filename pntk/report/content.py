"""What a report holds.

Shapes: m samples of the kernel; h, w pixels of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pntk.errors import ConfigError

COVERAGE_KEYS = ("name", "shape", "count", "rule", "module")


@dataclass(frozen=True)
class Neighbour:
    """A training sample that was found for a query.

    Args:
        index: Row of the store.
        score: Similarity to the query, of any scale.
        label: Class of the sample.
        image: [h, w], [h, w, 1] or [h, w, 3]. Integers of type uint8, booleans and values within
            [0, 1] are shown as they are, anything else is stretched to its own range.
        text: Text of the sample.
    """

    index: int
    score: float
    label: str | None = None
    image: NDArray[Any] | None = None
    text: str | None = None


@dataclass(frozen=True)
class Query:
    """A sample and its nearest neighbours, best first.

    Args:
        index: Row of the query's data set.
        label: Class of the sample.
        prediction: Class that the model predicts.
        image: As for ``Neighbour``.
        text: Text of the sample.
        neighbours: What was found.
    """

    index: int
    label: str | None = None
    prediction: str | None = None
    image: NDArray[Any] | None = None
    text: str | None = None
    neighbours: list[Neighbour] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """A section of an analysis: a figure, a table, or both.

    Args:
        title: Title of the section.
        figure: A picture as the bytes of a PNG.
        caption: What the figure shows, in words; also read out in its place.
        columns: Heads of the table's columns.
        rows: Cells of the table, as many a row as there are columns.
    """

    title: str
    figure: bytes | None = None
    caption: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass
class Report:
    """Everything a report shows; a section without content is left out.

    Args:
        title: Title of the page.
        run: What was run, as ordered facts: name -> value.
        headline: A few large numbers, each (what it says, the number).
        queries: Gallery of samples with their neighbours.
        kernel: [m, m], symmetric; shown after cosine normalisation.
        kernel_labels: [m] ints, the class of each sample; sorts the kernel.
        class_names: Name of class 0, 1, ...
        spectrum: [r] eigenvalues of the kernel, descending.
        panels: Sections of other analyses.
        coverage: A row a parameter, with the keys ``name``, ``shape``, ``count`` (entries),
            ``rule`` (how its gradient was captured) and ``module`` (its name, or why no rule).
        notes: Remarks and limits, a paragraph each.
        reproduce: Commands or code that make this report again.
    """

    title: str
    run: dict[str, str] = field(default_factory=dict)
    headline: list[tuple[str, str]] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    kernel: NDArray[Any] | None = None
    kernel_labels: NDArray[Any] | None = None
    class_names: list[str] | None = None
    spectrum: NDArray[Any] | None = None
    panels: list[Panel] = field(default_factory=list)
    coverage: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reproduce: str = ""


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
    for query in report.queries:
        check_image(query.image, f"query {query.index}")
        for neighbour in query.neighbours:
            check_image(neighbour.image, f"neighbour {neighbour.index}")


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
