"""Which kernel is most like the network: surrogates of several kernels and widths, in one table.

Shapes: n train and m test examples; k numbers a row; c classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset
from tqdm import tqdm

from pntk.embedding import embeddings
from pntk.errors import ConfigError, DataError
from pntk.featurizer import Featurizer
from pntk.forward import explained
from pntk.loading import Batches
from pntk.logits import logits_of
from pntk.ntk.exact import empirical_ntk
from pntk.projection.spec import ProjectionSpec
from pntk.surrogate.estimator import KernelSurrogate
from pntk.surrogate.metrics import SurrogateReport, check_probabilities, evaluate

PROJECTED = ("trace", "pntk", "loss")
EXACT = ("exact trace", "exact pntk")
ACTIVATIONS = ("CK", "Em")
KERNELS = (*PROJECTED, *EXACT, *ACTIVATIONS)
_MEASURES = ("kendall_tau", "r2", "tad", "r_miss", "agreement")
_COLUMNS = ("kernel", "k", "alpha", "tau", "R^2", "TAD", "R_Miss", "same prediction")


@dataclass(frozen=True)
class Line:
    """The surrogate of one kernel.

    Attributes:
        kernel: one of ``KERNELS``.
        proj_dim: k; None of kernels that are not projected.
        alpha: of the fit.
        report: what came out.
    """

    kernel: str
    proj_dim: int | None
    alpha: float
    report: SurrogateReport


@dataclass(frozen=True)
class Comparison:
    """A line for each kernel and width, in the order asked for; prints as a table."""

    lines: list[Line]
    columns: tuple[str, ...] = _COLUMNS

    def rows(self) -> list[list[str]]:
        """Return the cells of the table, intervals of 95 % in brackets."""
        return [
            [
                line.kernel,
                "" if line.proj_dim is None else f"{line.proj_dim:,}",
                f"{line.alpha:.0e}",
                *(_cell(line.report, name) for name in _MEASURES),
            ]
            for line in self.lines
        ]

    def __str__(self) -> str:
        table = [list(self.columns), *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        )


@torch.no_grad()
def compare_kernels(
    model: nn.Module,
    train: Any,
    test: Any,
    kernels: Sequence[str] = ("trace", "pntk", "CK"),
    proj_dims: Sequence[int] = (1024,),
    *,
    kind: str = "glm",
    normalize: bool | str = True,
    alpha: float | None = None,
    of: str | int = "own",
    bootstrap: int = 200,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Fit a surrogate to each of several kernels of a network, and compare it with the network.

    Args:
        model: classifier with logits [b, c], in eval mode.
        train: examples with labels 0 to c - 1, as :meth:`pntk.Featurizer.featurize` takes them.
        test: other examples with labels, to compare on.
        kernels: ``trace`` and ``pntk``, projected tangent kernels; ``loss``, that of gradients of
            the loss, which knows the labels of the test examples; ``exact trace`` and ``exact
            pntk`` without projection, [n + m, n + m] in memory, of tensors or data sets; ``CK``,
            inputs of the last Linear layer; ``Em``, outputs of all layers, all in memory.
        proj_dims: widths k of the projected ones.
        kind: of surrogate, as are the next two; see :class:`pntk.KernelSurrogate`.
        normalize: scale of the kernel.
        alpha: regularisation; None to choose it for each kernel.
        of: see :func:`pntk.surrogate.evaluate`.
        bootstrap: samples for intervals; 0 for none.
        seed: of projections, folds and the bootstrap.
        batch_size: samples a batch.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: a kernel or width that there is not.
        DataError: examples without labels, or none of a class.

    Source: Engel et al. (2023), table 1, https://arxiv.org/abs/2305.14585
    """
    _check(kernels, proj_dims)
    wanted = [(name, k) for name in kernels for k in (proj_dims if name in PROJECTED else [None])]
    labels = _network(model, train, "train", batch_size)[1]
    probs, test_labels = _network(model, test, "test", batch_size)
    _check_classes(labels, probs.shape[1])
    # refused before any work
    check_probabilities(probs, "the model's probabilities")
    evaluate(probs, probs, test_labels, of=of, bootstrap=min(bootstrap, 0))
    if any(name in EXACT for name in kernels):
        _joined(train, test)  # refused before any work
    lines = []
    for name, k in tqdm(wanted, unit="kernel", desc="surrogates", disable=not progress):
        surrogate = KernelSurrogate(
            kind,
            alpha=alpha,
            normalize=normalize,
            kernel="precomputed" if name in EXACT else "rows",
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            source = _Source(model, train, test, batch_size, Path(folder))
            ours, theirs = source.of(name, k, seed, cosines=normalize is True)
            predicted = surrogate.fit(ours, labels).predict_proba(theirs)
        report = evaluate(predicted, probs, test_labels, of=of, bootstrap=bootstrap, seed=seed)
        lines.append(Line(name, k, surrogate.alpha_, report))
    return Comparison(lines)


# ---- private -----------------------------------------------------------------------------------


def _check(kernels: Sequence[str], proj_dims: Sequence[int]) -> None:
    unknown = [name for name in kernels if name not in KERNELS]
    if unknown or not kernels or isinstance(kernels, str):
        raise ConfigError(f"kernels are {kernels!r}; expected some of {', '.join(KERNELS)}")
    if not proj_dims and any(name in PROJECTED for name in kernels):
        raise ConfigError("there are no proj_dims; expected at least one for the projected kernels")
    for k in proj_dims:
        ProjectionSpec(proj_dim=k)


def _check_classes(labels: np.ndarray, classes: int) -> None:
    absent = np.setdiff1d(np.arange(classes), labels)
    if len(absent) or classes < 2:
        raise DataError(
            f"the model has {classes} outputs and no train example of class "
            f"{', '.join(map(str, absent[:5])) or '1'}; expected examples of at least two classes, "
            "and of each that the model knows"
        )


def _network(
    model: nn.Module, data: Any, what: str, batch_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the network's probabilities [n, c] in float64, and the labels [n]."""
    batches = Batches(data, batch_size)
    probs, labels = [], []
    for _, batch in batches.covering(np.arange(batches.length)):
        with explained(model, batch):
            logits, own = logits_of(model, batch)
        if own is None:
            raise DataError(f"the {what} examples have no labels; expected (inputs, labels)")
        probs.append(logits.double().softmax(1).cpu())
        labels.append(own.cpu())
    return torch.cat(probs).numpy(), torch.cat(labels).numpy()


def _joined(train: Any, test: Any) -> Any:
    if isinstance(train, (tuple, list)) and isinstance(test, (tuple, list)):
        return tuple(torch.cat(pair) for pair in zip(train, test, strict=True))
    if isinstance(train, Dataset) and isinstance(test, Dataset):
        return ConcatDataset([train, test])
    raise ConfigError(
        f"train is {type(train).__name__} and test {type(test).__name__}; exact kernels expect two "
        "tuples of tensors or two data sets"
    )


@dataclass(frozen=True)
class _Source:
    """Where rows and kernels of both sets of examples come from."""

    model: nn.Module
    train: Any
    test: Any
    batch_size: int | None
    folder: Path

    def of(self, name: str, k: int | None, seed: int, cosines: bool) -> tuple[Any, Any]:
        """Return rows of train and test examples, or kernels [n, n] and [m, n]."""
        if name in EXACT:
            return self._exact(name.split()[1], cosines)
        if name in ACTIVATIONS:
            which = "last" if name == "CK" else "all"
            found = [
                embeddings(self.model, data, which, batch_size=self.batch_size)
                for data in (self.train, self.test)
            ]
            return found[0], found[1]
        assert k is not None  # of all that are projected
        featurizer = Featurizer(self.model, name, ProjectionSpec(proj_dim=k, seed=seed))
        stores = [
            featurizer.featurize(
                data, self.folder / f"{part}.h5", batch_size=self.batch_size, progress=False
            )
            for part, data in (("train", self.train), ("test", self.test))
        ]
        return stores[0], stores[1]

    def _exact(self, kind: str, cosines: bool) -> tuple[Tensor, Tensor]:
        kernel = empirical_ntk(self.model, _joined(self.train, self.test), kind=kind)
        assert isinstance(kernel, Tensor)  # neither components nor a file were asked for
        if cosines:
            inverse = kernel.diagonal().clamp(min=torch.finfo(kernel.dtype).tiny).rsqrt()
            kernel = kernel * torch.outer(inverse, inverse)
        n = Batches(self.train).length
        return kernel[:n, :n], kernel[n:, :n]


def _cell(report: SurrogateReport, name: str) -> str:
    value = f"{getattr(report, name):.3f}"
    if name not in report.intervals:
        return value
    low, high = report.intervals[name]
    return f"{value} ({low:.3f} to {high:.3f})"
