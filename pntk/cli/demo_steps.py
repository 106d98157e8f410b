"""The steps of the demo: train, featurize, kernel, neighbours, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pntk.cli import digits
from pntk.cli.demo_folder import DemoFolder
from pntk.cli.digits import Split
from pntk.featurizer import Featurizer
from pntk.ntk.kernel_file import partial_path
from pntk.ntk.projected import ntk
from pntk.projection.spec import ProjectionSpec
from pntk.report import Report
from pntk.report.build import Source, build_report
from pntk.report.neighbours import VOTERS, Labels, balanced, vote
from pntk.report.summary import format_share
from pntk.retrieval import topk
from pntk.store import FeatureStore

GALLERY = 16


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
    """One split: its images and labels, and its rows."""

    split: Split
    store: FeatureStore


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
    spec = ProjectionSpec(proj_dim=settings.proj_dim, seed=settings.seed)
    featurizer = Featurizer(model, "pntk", spec)
    train, test = splits
    return (
        Digits(train, featurizer.featurize(tuple(train), folder.path("train.h5"))),
        Digits(test, featurizer.featurize(tuple(test), folder.path("test.h5"))),
    )


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


def make_page(
    train: Digits, test: Digits, predictions: Labels, found: dict[str, float], seed: int
) -> Report:
    """Return the report, the digits that the network gets wrong first."""
    truth = test.split.labels.numpy()
    wrong, right = np.flatnonzero(predictions != truth), np.flatnonzero(predictions == truth)
    room = max(0, GALLERY - len(wrong))
    report = build_report(
        Source(train.store, tuple(train.split)),
        Source(test.store, tuple(test.split), predictions),
        title="Handwritten digits through the tangent kernel of a LeNet",
        shown=[*wrong[:GALLERY], *balanced(truth, right, room, np.random.default_rng(seed))],
        kernel_of=test.store,
        seed=seed,
    )
    report.headline = [
        ("accuracy of the network", format_share(found["network"])),
        *report.headline,
        (f"accuracy of {VOTERS} nearest in pixels", format_share(found["pixel_neighbours"])),
    ]
    report.notes.insert(
        0,
        f"The network gets {len(wrong)} of {len(truth)} test digits wrong. The gallery starts with "
        f"{'these' if room else f'the first {GALLERY} of these'}"
        + ("; the others are drawn from every class in turn." if room else "."),
    )
    return report
