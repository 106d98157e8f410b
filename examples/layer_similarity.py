"""Do two networks that learn the same task represent it alike? Two seeds of a CNN on digits.

Trains a small CNN from two seeds on scikit-learn's handwritten digits, and compares all its layers
on test images: the two trained networks with each other, and one of them with itself before
training. Draws a heat map of each, and prints every measure for layers of the same name.

    python examples/layer_similarity.py --out .

Needs scikit-learn, SciPy and matplotlib: pip install "pntk[analysis]".
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pntk.files import write_whole
from pntk.representation import distance_over_tasks, layer_similarity

HELD_OUT = 600
MEASURES: dict[str, dict] = {
    "cka": {},
    "rbf_cka": {},
    "svcca": {},
    "pwcca": {"neurons": "filter", "ridge": 1e-3},
    "procrustes": {},
    "neighbours": {},
    "rsa": {},
}


def load(seed: int) -> tuple[Tensor, Tensor]:
    """Return standardised images [1797, 1, 8, 8] in random order, and labels [1797]."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = torch.from_numpy(digits.target).long()
    return ((images - images.mean()) / images.std())[order], labels[order]


class Net(nn.Module):
    """Three convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(images))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def train(seed: int, images: Tensor, labels: Tensor, epochs: int) -> tuple[nn.Module, nn.Module]:
    """Return the network before and after training."""
    torch.manual_seed(seed)
    model = Net()
    before = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return before.eval(), model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the pictures")
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    began = time.perf_counter()

    images, labels = load(0)
    test, rest = images[:HELD_OUT], slice(HELD_OUT, None)
    before, first = train(0, images[rest], labels[rest], given.epochs)
    _, second = train(1, images[rest], labels[rest], given.epochs)
    for seed, model in enumerate((first, second)):
        with torch.no_grad():
            right = float((model(test).argmax(1) == labels[:HELD_OUT]).float().mean())
        print(f"seed {seed}: {right:.1%} of {HELD_OUT} test images right")
    trained = time.perf_counter()

    pairs = {
        "seeds": (first, second, "seed 0", "seed 1"),
        "training": (first, before, "seed 0", "seed 0 before training"),
    }
    for name, (a, b, name_a, name_b) in pairs.items():
        found = layer_similarity(a, b, test, progress=False)
        path = given.out / f"layer-similarity-{name}.png"
        write_whole(path, found.png(name_a=name_a, name_b=name_b))
        print(f"\n{name_a} and {name_b}, layers of the same name; {path}")
        print("measure     " + "".join(f"{layer:>8}" for layer in found.layers_a))
        for measure, options in MEASURES.items():
            distances = distance_over_tasks(a, b, [test], None, measure, progress=False, **options)
            print(f"{measure:12}" + "".join(f"{1 - v:8.2f}" for v in distances.mean.tolist()))
    tasks = test.split(100)
    spread = distance_over_tasks(first, second, list(tasks), progress=False, debiased=True)
    print("\n1 - CKA of the seeds over six tasks of 100 images: mean and 95 % interval")
    for layer, mean, half in zip(
        spread.layers_a, spread.mean.tolist(), spread.interval.tolist(), strict=True
    ):
        print(f"{layer:8}{mean:6.3f} +- {half:.3f}")
    done = time.perf_counter()
    print(f"\ntraining {trained - began:.1f} s, comparing {done - trained:.1f} s")


if __name__ == "__main__":
    main()
