"""The steps of the demo: train, featurize, kernel, neighbours, surrogates, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pntk.cli import digits
from pntk.cli.demo_folder import DemoFolder
from pntk.cli.digits import Split
from pntk.featurizer import Featurizer
from pntk.ntk.kernel_file import partial_path
from pntk.ntk.projected import ntk
from pntk.projection.spec import ProjectionSpec
from pntk.report import Report, Surrogate
from pntk.report.build import Source, build_report
from pntk.report.influence import Influence
from pntk.report.neighbours import VOTERS, Labels, vote
from pntk.report.summary import format_share
from pntk.report.surrogates import compare
from pntk.retrieval import topk
from pntk.store import FeatureStore

GALLERY = 60
MARGIN_DIM = 1024  # of rows for TRAK, whose cost is its square
BOOTSTRAP = 200  # samples for intervals
ALPHA = 1e-4  # times the mean of K(x, x): what Engel 2023 takes for small networks


@dataclass(frozen=True)
class Settings:
    """What the demo's results depend on; None for all rows of a split."""

    seed: int
    epochs: int
    proj_dim: int
    train_rows: int | None
    test_rows: int | None


@dataclass(frozen=True)
class Digits:
    """One split: its images and labels, its rows, and those of output margin."""

    split: Split
    store: FeatureStore
    margin: FeatureStore


def trained(folder: DemoFolder, data: Split, settings: Settings) -> nn.Module:
    """Return the network, trained now or by an earlier run with the same settings."""
    path = folder.path("model.pt")
    if path.exists():
        model = digits.network().eval()
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    model = digits.train(data, settings.epochs, settings.seed)
    partial = folder.path("model.pt.partial")
    torch.save(model.state_dict(), partial)
    partial.replace(path)
    return model


def featurized(
    folder: DemoFolder, model: nn.Module, splits: tuple[Split, Split], settings: Settings
) -> tuple[Digits, Digits]:
    """Return both splits with their rows, made now or by an earlier run."""
    widths = {"pntk": settings.proj_dim, "margin": min(MARGIN_DIM, settings.proj_dim)}
    of_pntk, of_margin = (
        Featurizer(model, output, ProjectionSpec(proj_dim=width, seed=settings.seed))
        for output, width in widths.items()
    )
    train, test = (
        Digits(
            split,
            of_pntk.featurize(tuple(split), folder.path(f"{name}.h5")),
            of_margin.featurize(tuple(split), folder.path(f"{name}-margin.h5")),
        )
        for name, split in zip(("train", "test"), splits, strict=True)
    )
    return train, test


def write_kernel(folder: DemoFolder, test: Digits) -> Path:
    """Write the kernel of the test digits."""
    path = folder.path("kernel.h5")
    for earlier in (path, partial_path(path)):
        earlier.unlink(missing_ok=True)
    ntk(test.store, out=path)
    return path


def accuracies(train: Digits, test: Digits, predictions: Labels) -> dict[str, float]:
    """Return the share of test digits that the network and its neighbours get right.

    Neighbours vote, in the network's kernel and, for comparison, by the cosine of the pixels.
    """

    def voted(queries: Any, rows: Any) -> Labels:
        return vote(train.split.labels[topk(queries, rows, VOTERS).indices].numpy())

    def share(answers: Labels, others: Labels) -> float:
        return float((answers == others).mean())

    truth = test.split.labels.numpy()
    in_kernel = voted(test.store, train.store)
    in_pixels = voted(test.split.images.flatten(1), train.split.images.flatten(1))
    return {
        "network": share(predictions, truth),
        "kernel_neighbours": share(in_kernel, truth),
        "pixel_neighbours": share(in_pixels, truth),
        "kernel_neighbours_as_network": share(in_kernel, predictions),
    }


def surrogates(train: Digits, test: Digits, probs: Tensor, settings: Settings) -> list[Surrogate]:
    """Return kernel machines of the kernel as it is and of cosines, compared with the network."""
    scale = float(train.store[:].square().sum(1).mean())
    return [
        compare(
            train.store,
            test.store,
            probs.numpy(),
            normalize=normalize,
            alpha=ALPHA if normalize else ALPHA * scale,
            bootstrap=BOOTSTRAP,
            seed=settings.seed,
        )
        for normalize in (False, True)
    ]


def make_page(
    train: Digits,
    test: Digits,
    predictions: Labels,
    found: dict[str, float],
    compared: list[Surrogate],
    seed: int,
) -> Report:
    """Return the report."""
    report = build_report(
        Source(train.store, tuple(train.split)),
        Source(test.store, tuple(test.split), predictions),
        title="Handwritten digits through the tangent kernel of a LeNet",
        num_queries=GALLERY,
        kernel_of=test.store,
        influence=Influence("trak", train.margin, test.margin),
        surrogates=compared,
        seed=seed,
    )
    in_pixels = (f"accuracy of {VOTERS} nearest in pixels", format_share(found["pixel_neighbours"]))
    report.headline.insert(-1, in_pixels)
    return report
