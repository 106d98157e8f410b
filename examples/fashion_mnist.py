"""Which training images does a network treat like this test image? All 70,000 of Fashion-MNIST.

Trains LeNet, projects the gradients of every image to k = 4096 numbers, and finds the five nearest
training images of each test image under the network's kernel.

    python examples/fashion_mnist.py --out fashion-mnist-output

The images come with Debian and Ubuntu (apt install dataset-fashion-mnist); elsewhere, put the four
idx .gz files of https://github.com/zalandoresearch/fashion-mnist into a folder and name it with
--data.
"""

from __future__ import annotations

import argparse
import gzip
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pntk import FeatureStore, Featurizer, topk
from pntk.models import LeNet

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.286, 0.353  # of the training pixels, in [0, 1]
CLASSES = [
    "top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]


def read_idx(path: Path) -> Tensor:
    """Return the bytes of an idx file as a uint8 tensor of the shape in its header."""
    with gzip.open(path) as file:
        content = bytearray(file.read())
    kind, dimensions = content[2], content[3]
    if kind != 8:
        raise SystemExit(f"{path}: idx type {kind:#x}; expected unsigned bytes (0x8)")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * dimensions).view(shape)


def load(data: Path, part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Return standardised images [n, 1, 28, 28] and labels [n]."""
    files = [data / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise SystemExit(
            f"{data} has no {' and no '.join(missing)}. Install them with: apt install "
            "dataset-fashion-mnist. Or download them from "
            "https://github.com/zalandoresearch/fashion-mnist and pass --data FOLDER."
        )
    images, labels = (read_idx(path)[:limit] for path in files)
    return (images[:, None].float() / 255 - MEAN) / DEVIATION, labels.long()


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> LeNet:
    """Return a trained network in eval mode."""
    torch.manual_seed(seed)
    model = LeNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(128):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the most likely class of each image."""
    return torch.cat([model(part).argmax(1) for part in images.split(1024)])


def vote(labels: Tensor, similarity: Tensor) -> Tensor:
    """Return the majority label of each row's neighbours [m, 5]; similarity breaks ties."""
    votes = torch.zeros(len(labels), len(CLASSES))
    return votes.scatter_add_(1, labels, 1 + 0.01 * similarity).argmax(1)


def featurize(
    f: Featurizer, images: Tensor, labels: Tensor, path: Path, batch_size: int
) -> FeatureStore:
    """Write or resume a store and print its speed."""
    before = FeatureStore(path).num_done if path.exists() else 0
    start = time.perf_counter()
    store = f.featurize((images, labels), path, batch_size=batch_size)
    seconds = time.perf_counter() - start
    made = len(store) - before
    size = path.stat().st_size / 1e6
    print(f"{made:,} rows in {seconds:.1f} s, {made / seconds:,.0f} rows/s; {size:,.0f} MB", end="")
    print(f" ({before:,} were there already)" if before else "", flush=True)
    return store


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long a stage took, and the peak memory so far."""
    print(f"-- {name}", flush=True)
    start = time.perf_counter()
    yield
    print(f"   {time.perf_counter() - start:.1f} s, {peak_memory()}", flush=True)


def peak_memory() -> str:
    """Return the largest resident size of this process so far (VmHWM)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return "peak memory unknown on this system"
    kib = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM"))
    return f"peak memory {kib / 1e6 * 1.024:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder of the idx .gz files")
    parser.add_argument("--out", type=Path, default=Path("fashion-mnist-output"))
    parser.add_argument("--limit", type=int, help="images of each part, for a quick run")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--proj-dim", type=int, default=4096, help="k")
    parser.add_argument("--output", default="pntk", choices=["pntk", "trace", "margin", "loss"])
    parser.add_argument("--batch-size", type=int, default=256)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    with stage("read the images"):
        train_images, train_labels = load(given.data, "train", given.limit)
        test_images, test_labels = load(given.data, "t10k", given.limit)
    with stage(f"train LeNet on {len(train_images):,} images, {given.epochs} epochs"):
        model = train(train_images, train_labels, given.epochs, given.seed)
    accuracy = (predict(model, test_images) == test_labels).float().mean()

    f = Featurizer(model, given.output, proj_dim=given.proj_dim, seed=given.seed)
    with stage("featurize the training images"):
        train_store = featurize(
            f, train_images, train_labels, given.out / "train.h5", given.batch_size
        )
    with stage("featurize the test images"):
        test_store = featurize(f, test_images, test_labels, given.out / "test.h5", given.batch_size)
    with stage(f"find the 5 nearest of {len(train_store):,} for {len(test_store):,}"):
        found = topk(test_store, train_store, k=5)

    neighbours = train_labels[found.indices]
    voted = vote(neighbours, found.values)
    print()
    for i in range(min(3, len(test_labels))):
        nearest = ", ".join(
            f"{CLASSES[int(label)]} #{int(index)} ({float(value):.2f})"
            for label, index, value in zip(
                neighbours[i], found.indices[i], found.values[i], strict=True
            )
        )
        print(f"test #{i}, {CLASSES[int(test_labels[i])]}: {nearest}")
    print(f"\naccuracy of the network          {accuracy:.4f}")
    print(f"accuracy of the 5 nearest's vote {(voted == test_labels).float().mean():.4f}")
    print(f"{time.perf_counter() - began:.0f} s in all, {peak_memory()}")


if __name__ == "__main__":
    main()
