"""Is a small CNN a kernel machine? Two classes of Fashion-MNIST, several seeds.

For each seed: trains LeNet on two classes, writes projected gradients of all images, fits a
logistic regression on the cosines of the rows (the kernel surrogate), and compares its
probabilities with the network's on the test images: Kendall tau, R^2 of log-odds, accuracy. In the
spirit of Engel et al. (2023), https://arxiv.org/abs/2305.14585, who report for their two-class
Fashion-MNIST CNN: network 97.95 %, tau .882, R^2 .916. Their tau and R^2 are of the probability of
class 1, both classes together: tau_class_1 and r2_class_1 here. The others are of the probability
of each image's own class.

    python examples/surrogate_fashion_mnist.py --classes 5 7 --seeds 5 --out surrogates.json

Needs pip install "pntk[analysis]" and the images, as examples/fashion_mnist.py does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import struct
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pntk import Featurizer, KernelSurrogate
from pntk.embedding import embeddings
from pntk.models import LeNet

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.286, 0.353  # of the training pixels, in [0, 1]
SHOWN = ("kendall_tau", "r2", "pearson", "surrogate_accuracy", "tad", "r_miss")


def read_idx(path: Path) -> Tensor:
    """Return the bytes of an idx file as a uint8 tensor of the shape in its header."""
    if not path.is_file():
        raise SystemExit(f"there is no {path}: apt install dataset-fashion-mnist, or pass --data")
    content = bytearray(gzip.decompress(path.read_bytes()))
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * content[3]).view(shape)


def load(data: Path, part: str, classes: list[int], limit: int | None) -> tuple[Tensor, Tensor]:
    """Return standardised images [n, 1, 28, 28] of two classes and labels 0 and 1 [n]."""
    images = read_idx(data / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(data / f"{part}-labels-idx1-ubyte.gz")
    chosen = (labels == classes[0]) | (labels == classes[1])
    images, labels = images[chosen][:limit], labels[chosen][:limit]
    return (images[:, None].float() / 255 - MEAN) / DEVIATION, (labels == classes[1]).long()


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """Return a trained network in eval mode."""
    torch.manual_seed(seed)
    model = LeNet(num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Return the network's probabilities [n, 2] in float64."""
    return torch.cat([model(part).double().softmax(1) for part in images.split(1024)])


def rows_of(model: nn.Module, output: str, images: Tensor, proj_dim: int) -> Tensor:
    """Return projected gradients [n, k]."""
    featurizer = Featurizer(model, output, proj_dim=proj_dim)
    return torch.cat([featurizer(part) for part in images.split(64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DEBIAN)
    parser.add_argument("--classes", type=int, nargs=2, default=[5, 7])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--proj-dim", type=int, default=2048, help="k")
    parser.add_argument("--alpha", type=float, help="regularisation; chosen by folds if left out")
    parser.add_argument("--normalize", choices=["cosine", "none", "trntk0"], default="none")
    parser.add_argument("--limit", type=int, help="images of each part")
    parser.add_argument("--out", type=Path, help="JSON file of all numbers")
    given = parser.parse_args()
    images, labels = load(given.data, "train", given.classes, given.limit)
    test_images, test_labels = load(given.data, "t10k", given.classes, given.limit)
    normalize = {"cosine": True, "none": False, "trntk0": "trntk0"}[given.normalize]
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seeds):
        began = time.perf_counter()
        model = train(images, labels, given.epochs, seed)
        probs = probabilities(model, test_images)
        for kernel in ("trace", "pntk", "CK"):
            if kernel == "CK":
                rows, test_rows = embeddings(model, images), embeddings(model, test_images)
            else:
                rows = rows_of(model, kernel, images, given.proj_dim)
                test_rows = rows_of(model, kernel, test_images, given.proj_dim)
            surrogate = KernelSurrogate(
                "glm", alpha=given.alpha, normalize=normalize, seed=seed
            ).fit(rows, labels)
            report = surrogate.evaluate(test_rows, probs, test_labels, bootstrap=1)
            published = surrogate.evaluate(test_rows, probs, test_labels, of=1, bootstrap=0)
            numbers = {name: float(getattr(report, name)) for name in SHOWN}
            numbers |= {"tau_class_1": published.kendall_tau, "r2_class_1": published.r2}
            numbers |= {"network": float(report.network_accuracy), "alpha": surrogate.alpha_}
            found.setdefault(kernel, []).append(numbers)
            print(f"seed {seed} {kernel:6}", *(f"{k} {v:.4g}" for k, v in numbers.items()))
        print(f"seed {seed} took {time.perf_counter() - began:.0f} s", flush=True)
    for kernel, numbers in found.items():
        print(f"\n{kernel}, mean (standard deviation) of {given.seeds} seeds")
        for name in ("network", "tau_class_1", "r2_class_1", *SHOWN):
            values = [one[name] for one in numbers]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"  {name:20} {statistics.mean(values):.4f} ({spread:.4f})")
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
