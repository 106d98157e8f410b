"""How does a network's tangent kernel change while it learns? A small CNN on handwritten digits.

Trains with SGD on scikit-learn's digits and measures, on 300 training images, how far the kernel
has moved from the one it began with, how well it fits the labels, and its effective rank. Prints a
table and draws the three curves.

    python examples/kernel_drift.py --out kernel-drift.png

Needs scikit-learn and matplotlib: pip install "pntk[analysis]". With --tensorboard FOLDER, and
tensorboard installed, the numbers also go where TensorBoard finds them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pntk import Featurizer
from pntk.ntk.monitor import KernelMonitor
from pntk.report.spectrum_plots import training_plot

HELD_OUT = 360
PROBE = 300


def load(seed: int) -> tuple[Tensor, Tensor]:
    """Return standardised images [1797, 1, 8, 8] in random order, and labels [1797]."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = torch.from_numpy(digits.target).long()
    return ((images - images.mean()) / images.std())[order], labels[order]


def network() -> nn.Module:
    """Return a CNN of 38,282 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the network gives their label."""
    return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("kernel-drift.png"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--proj-dim", type=int, default=2048, help="k")
    parser.add_argument("--output", default="trace", choices=["pntk", "trace"])
    parser.add_argument("--tensorboard", type=Path, help="folder of logs")
    given = parser.parse_args()
    began = time.perf_counter()

    images, labels = load(given.seed)
    held_out, train = slice(0, HELD_OUT), slice(HELD_OUT, None)
    torch.manual_seed(given.seed)
    model = network()
    writer = None
    if given.tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(given.tensorboard)
    probe = images[train][:PROBE], labels[train][:PROBE]
    monitor = KernelMonitor(
        Featurizer(model, given.output, proj_dim=given.proj_dim, seed=given.seed),
        probe,
        writer=writer,
    )

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    print("epoch  accuracy  drift  last  alignment  centred  eff. rank  condition")
    measuring = 0.0
    for epoch in range(given.epochs + 1):
        start = time.perf_counter()
        found = monitor(epoch)
        measuring += time.perf_counter() - start
        assert found is not None
        print(
            f"{epoch:5}  {accuracy(model, images[held_out], labels[held_out]):8.3f}  "
            f"{found['drift']:5.3f}  {found['drift_step']:.2f}  {found['target_alignment']:9.3f}  "
            f"{found['target_alignment_centered']:7.3f}  {found['effective_rank']:9.1f}  "
            f"{found['condition_number']:9.2g}",
            flush=True,
        )
        if epoch == given.epochs:
            break
        for batch in torch.randperm(len(images) - HELD_OUT).split(64):
            loss = F.cross_entropy(model(images[train][batch]), labels[train][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    given.out.write_bytes(training_plot(monitor.history))
    if writer is not None:
        writer.close()
    seconds = time.perf_counter() - began
    print(f"\n{given.out}; {seconds:.1f} s in all, {measuring:.1f} s of them for the kernel")


if __name__ == "__main__":
    main()
