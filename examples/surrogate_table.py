"""Which kernel is most like a network, and how wide do rows have to be? A table and a figure.

Trains a LeNet on scikit-learn's handwritten digits, fits a logistic surrogate to each of several
kernels - the trace NTK and the pNTK, projected to several widths and exact, gradients of the loss,
CK and Em - and compares all of them with the network on the test digits.

    python examples/surrogate_table.py --plot surrogates.png

Needs pip install "pntk[analysis]".
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pntk.models import LeNet
from pntk.report.comparison_plot import comparison_plot
from pntk.surrogate import compare_kernels
from pntk.surrogate.comparison import KERNELS


def load(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return 1,200 train and 597 test digits, images [n, 1, 8, 8] in [0, 1]."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(digits.target)[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def train(data: tuple[Tensor, Tensor], epochs: int, seed: int) -> nn.Module:
    """Return a trained network in eval mode."""
    torch.manual_seed(seed)
    images, labels = data
    model = LeNet(image_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--proj-dims", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--normalize", choices=["cosine", "none", "trntk0"], default="cosine")
    parser.add_argument("--alpha", type=float, help="regularisation; chosen by folds if left out")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="PNG of tau against k")
    given = parser.parse_args()
    began = time.perf_counter()
    data, test = load(given.seed)
    model = train(data, given.epochs, given.seed)
    found = compare_kernels(
        model,
        data,
        test,
        given.kernels,
        given.proj_dims,
        normalize={"cosine": True, "none": False, "trntk0": "trntk0"}[given.normalize],
        alpha=given.alpha,
        seed=given.seed,
    )
    accuracy = found.lines[0].report.network_accuracy
    print(f"network {accuracy:.3f} right on {len(test[1])} test digits")
    print(found)
    if given.plot is not None:
        given.plot.write_bytes(comparison_plot(found))
        print(given.plot)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
