"""What a report holds.

Shapes: m samples of the kernel; h, w pixels of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from pntk.surrogate import SurrogateReport


@dataclass(frozen=True)
class Neighbour:
    """A training sample that was found for a query.

    Args:
        index: Row of the store.
        score: Similarity to the query, or influence on it, of any scale.
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
    """A sample, and the training samples that belong to it.

    Args:
        index: Row of the query's data set.
        label: Class of the sample.
        prediction: Class that the model predicts.
        image: As for ``Neighbour``.
        text: Text of the sample.
        neighbours: The most similar, best first.
        influential: Those that raise the query's output most, best first.
        opposing: Those that lower it most, the strongest first.
    """

    index: int
    label: str | None = None
    prediction: str | None = None
    image: NDArray[Any] | None = None
    text: str | None = None
    neighbours: list[Neighbour] = field(default_factory=list)
    influential: list[Neighbour] = field(default_factory=list)
    opposing: list[Neighbour] = field(default_factory=list)


@dataclass(frozen=True)
class Suspect:
    """A training sample whose label may be wrong.

    Args:
        index: Row of the store.
        label: Class that it was given.
        suggested: Class that it looks like.
        score: How much more it looks like it.
        image: As for ``Neighbour``.
        text: Text of the sample.
    """

    index: int
    label: str
    suggested: str
    score: float
    image: NDArray[Any] | None = None
    text: str | None = None


@dataclass(frozen=True)
class Surrogate:
    """A kernel machine beside the network it stands for, on m examples that neither was fit to.

    Args:
        name: What it is, such as "glm of cosines".
        report: How alike the two are.
        ours: [m] probability that the surrogate gives the example's own class.
        network: [m] that the network gives it.
        right: bool [m], whether the network predicts the own class.
    """

    name: str
    report: SurrogateReport
    ours: NDArray[Any]
    network: NDArray[Any]
    right: NDArray[Any]


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
        warning: Why results and surrogates are to be read with care, shown beside both.
        queries: Gallery of samples with their neighbours, which the page shows in this order.
        asked: How many queries there are, of which the gallery shows some; None if unknown.
        influence: How the influential samples of the queries were scored.
        mislabelled: Training samples whose labels may be wrong, the likeliest first.
        suspicion: How they were found.
        surrogates: Kernel machines that were compared with the network.
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
    warning: str = ""
    queries: list[Query] = field(default_factory=list)
    asked: int | None = None
    influence: str = ""
    mislabelled: list[Suspect] = field(default_factory=list)
    suspicion: str = ""
    surrogates: list[Surrogate] = field(default_factory=list)
    kernel: NDArray[Any] | None = None
    kernel_labels: NDArray[Any] | None = None
    class_names: list[str] | None = None
    spectrum: NDArray[Any] | None = None
    panels: list[Panel] = field(default_factory=list)
    coverage: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reproduce: str = ""
