"""The demo's data and network: scikit-learn's 1,797 handwritten digits, and a LeNet for them.

``network``, ``train_data`` and ``test_data`` are factories for the command line, too:
``pntk featurize --model pntk.cli.digits:network --data pntk.cli.digits:train_data ...``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pntk.extras import require
from pntk.models import LeNet

TEST_SHARE = 0.2
SPLIT_SEED = 0  # of the split alone, so that accuracies of different seeds compare
BATCH_SIZE = 64
LEARNING_RATE = 1e-2


class Split(NamedTuple):
    """Images [n, 1, 8, 8] with values in [0, 1], and labels int64 [n]."""

    images: Tensor
    labels: Tensor


def load(train_rows: int | None = None, test_rows: int | None = None) -> tuple[Split, Split]:
    """Return the training and the test digits, every class at its share.

    Args:
        train_rows: how many to train on; None for 1,437.
        test_rows: how many to test on; None for 360.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    digits = require("sklearn.datasets", "the demo").load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    train, test = require("sklearn.model_selection", "the demo").train_test_split(
        torch.arange(len(labels)).numpy(),
        train_size=1 - TEST_SHARE if train_rows is None else train_rows,
        test_size=TEST_SHARE if test_rows is None else test_rows,
        stratify=digits.target,
        random_state=SPLIT_SEED,
    )
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def train_data() -> Split:
    """Return all training digits."""
    return load()[0]


def test_data() -> Split:
    """Return all test digits."""
    return load()[1]


def network() -> nn.Module:
    """Return the demo's network, untrained."""
    return LeNet(image_size=8)


def train(data: Split, epochs: int, seed: int) -> nn.Module:
    """Return a network trained with Adam on digits that move by up to one pixel.

    The same arguments give the same weights, and the global random state is left as it was.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        steps = epochs * -(-len(data.labels) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(data.labels)).split(BATCH_SIZE):
                logits = model(_shifted(data.images[batch]))
                loss = nn.functional.cross_entropy(logits, data.labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def _shifted(images: Tensor) -> Tensor:
    """Move a batch by one pixel, or not at all, in either direction."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    size = images.shape[-1]
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[..., down : down + size, right : right + size]


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class that the network gives each image, int64 [n]."""
    return model(images).argmax(1)


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Return the probability that the network gives each class, float64 [n, 10]."""
    return model(images).double().softmax(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order on every machine; for a network this small it is also the fastest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
