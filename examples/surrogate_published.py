"""Engel et al.'s two-class Fashion-MNIST network, rebuilt: how their tau and R^2 come about.

For each seed: trains a CNN as in the published experiment (classes 0 and 1, 5,000 images of each;
average pooling, weights drawn from N(0, 1) and scaled in the forward pass, one output), takes its
exact tangent kernel, fits surrogates on cosines and compares them with the network on 2,000 test
images. Trained with cross entropy, or with --loss mse as in the published script: mean squared
error between labels 0 and 1 and the change of the output since initialisation.

Two versions of each measure are printed. "class 1" is what the published tables hold: over the
probability of class 1, examples of both classes together. "own" is over the probability of each
example's own class. In the first, a pair of examples of different classes agrees as soon as both
classifiers tell the classes apart, so it is near (1 + tau within classes) / 2.

    python examples/surrogate_published.py --limit 1600 --out published.json

Source: Engel et al. (2023), https://arxiv.org/abs/2305.14585: network 97.95 %, tau .882, R^2 .916.
Differs from it: batches of 64, shuffled, and fewer epochs, where it takes 200 epochs of batches of
4. Needs pip install "pntk[analysis]" and the images, as examples/fashion_mnist.py does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import struct
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pntk import KernelSurrogate, empirical_ntk

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PER_CLASS = {"train": 5000, "t10k": 1000}


class ScaledCNN(nn.Module):
    """Three convolutions with average pooling and three linear layers, scaled by their fan-out.

    39,137 parameters, all drawn from N(0, 1). One output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 64), (64, 32), (32, 8))
        )
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in ((72, 128), (128, 64)))
        self.last = nn.Linear(64, 1)
        for p in self.parameters():
            nn.init.normal_(p)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, 1, 28, 28] to [b, 1]."""
        for layer in self.convolutions:
            x = F.avg_pool2d(F.relu(layer(x)) / (9 * layer.out_channels) ** 0.5, 2)
        x = x.flatten(1)
        for layer in self.linears:
            x = F.relu(layer(x)) / layer.out_features**0.5
        output: Tensor = self.last(x)
        return output


def read_idx(path: Path) -> Tensor:
    """Return the bytes of an idx file as a uint8 tensor of the shape in its header."""
    if not path.is_file():
        raise SystemExit(f"there is no {path}: apt install dataset-fashion-mnist, or pass --data")
    content = bytearray(gzip.decompress(path.read_bytes()))
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * content[3]).view(shape)


def load(data: Path, part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Return images [n, 1, 28, 28] in [0, 1], those of class 0 first, and labels [n]."""
    images = read_idx(data / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(data / f"{part}-labels-idx1-ubyte.gz")
    many = PER_CLASS[part] if limit is None else limit // 2
    chosen = torch.cat([torch.nonzero(labels == c)[:many, 0] for c in (0, 1)])
    return images[chosen][:, None].float() / 255, labels[chosen].long()


def train(images: Tensor, labels: Tensor, epochs: int, seed: int, loss: str) -> nn.Module:
    """Return a trained network: ``mse`` fits its change since initialisation to the labels."""
    torch.manual_seed(seed)
    model = ScaledCNN()
    targets, criterion = labels.float(), F.binary_cross_entropy_with_logits
    if loss == "mse":
        with torch.no_grad():
            targets = labels + torch.cat([model(part)[:, 0] for part in images.split(512)])
        criterion = F.mse_loss
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            criterion(model(images[batch])[:, 0], targets[batch]).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> np.ndarray:
    """Return the network's outputs [n] in float64."""
    return torch.cat([model(part)[:, 0].double() for part in images.split(512)]).numpy()


def compare(
    surrogate: KernelSurrogate, kernel: Tensor, network: np.ndarray, labels: Tensor
) -> dict[str, float]:
    """Return the measures of a surrogate and the network's logits of class 1, [n]."""
    p = 1 / (1 + np.exp(-network))
    probs = np.stack([1 - p, p], axis=1)
    own = surrogate.evaluate(kernel, probs, labels, bootstrap=0)
    published = surrogate.evaluate(kernel, probs, labels, of=1, bootstrap=0)
    return {
        "tau_class_1": published.kendall_tau,
        "tau_within": statistics.mean(published.per_class),
        "tau_own": own.kendall_tau,
        "r2_class_1": published.r2,
        "r2_own": own.r2,
        "surrogate_accuracy": own.surrogate_accuracy,
        "network_accuracy": own.network_accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DEBIAN)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--loss", choices=["mse", "bce"], default="bce")
    parser.add_argument("--alpha", type=float, default=1e-5, help="of the glm")
    parser.add_argument("--limit", type=int, help="images of each part")
    parser.add_argument("--out", type=Path, help="JSON file of all numbers")
    given = parser.parse_args()
    images, labels = load(given.data, "train", given.limit)
    test_images, test_labels = load(given.data, "t10k", given.limit)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seeds):
        began = time.perf_counter()
        model = train(images, labels, given.epochs, seed, given.loss)
        network = logits(model, test_images)
        everything = torch.cat([images, test_images])
        kernel = empirical_ntk(model, everything)
        assert isinstance(kernel, Tensor)
        scale = kernel.diagonal().rsqrt()
        kernel = (kernel * torch.outer(scale, scale)).double()
        n = len(images)
        for name, legacy in (("glm as published", True), ("glm", False)):
            surrogate = KernelSurrogate(
                "glm",
                kernel="precomputed",
                alpha=None if legacy else given.alpha,
                legacy=legacy,
                seed=seed,
            ).fit(kernel[:n, :n], labels)
            numbers = compare(surrogate, kernel[n:, :n], network, test_labels)
            found.setdefault(name, []).append(numbers)
            print(f"seed {seed} {name:17}", *(f"{k} {v:.4f}" for k, v in numbers.items()))
        print(f"seed {seed} took {time.perf_counter() - began:.0f} s", flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=1))
    for name, rows in found.items():
        print(f"\n{name}, mean (standard deviation) of {given.seeds} seeds")
        for key in rows[0]:
            values = [one[key] for one in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"  {key:20} {statistics.mean(values):.4f} ({spread:.4f})")


if __name__ == "__main__":
    main()
