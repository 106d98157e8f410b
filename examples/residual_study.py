"""How wrong are cosines of projected gradients, at which k, and by which law?

Trains LeNet on Fashion-MNIST and a slim ResNet18 on the same images at half the size, compares
cosines of projected rows with the exact ones for the trace NTK and the pNTK, and draws a figure of
each study.

    python examples/residual_study.py --out residual-study

The images come with Debian and Ubuntu (apt install dataset-fashion-mnist), or from the folder
--data; without them LeNet and ResNet18 learn scikit-learn's digits.

Needs matplotlib: pip install "pntk[analysis]".
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pntk.models import LeNet, ResNet18
from pntk.ntk.residuals import residual_study
from pntk.report.residual_plot import residual_plot

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NETWORKS = ["lenet", "resnet18"]


def read_idx(path: Path) -> Tensor:
    """Return the bytes of an idx file as a uint8 tensor of the shape in its header."""
    with gzip.open(path) as file:
        content = bytearray(file.read())
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * content[3]).view(shape)


def load(folder: Path) -> tuple[str, Tensor, Tensor]:
    """Return the name of a data set, standardised images [n, 1, h, w] and labels [n]."""
    if (folder / "train-images-idx3-ubyte.gz").is_file():
        name = "Fashion-MNIST"
        images = read_idx(folder / "train-images-idx3-ubyte.gz").float()
        labels = read_idx(folder / "train-labels-idx1-ubyte.gz").long()
    else:
        from sklearn.datasets import load_digits

        name, digits = "digits", load_digits()
        images = torch.from_numpy(digits.images).float()
        images = F.interpolate(images[:, None], size=(28, 28), mode="bilinear")[:, 0]
        labels = torch.from_numpy(digits.target).long()
    return name, ((images - images.mean()) / images.std())[:, None], labels


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Return the network after some epochs, in eval mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(128):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the network gives their label."""
    return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder of the idx .gz files")
    parser.add_argument("--out", type=Path, default=Path("residual-study"))
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--proj-dims", type=int, nargs="+", default=[256, 1024, 4096], help="k")
    parser.add_argument("--projection", nargs="+", default=["hadamard"], help="families")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--width", type=int, default=16, help="of ResNet18; 64 is the full one")
    parser.add_argument("--train", type=int, default=6000, help="images to learn from")
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    torch.manual_seed(0)
    name, images, labels = load(given.data)
    order = torch.randperm(len(images))[: given.train + 500]
    images, labels = images[order], labels[order]
    networks = {
        "lenet": (LeNet(), images),
        "resnet18": (ResNet18(in_channels=1, width=given.width), F.avg_pool2d(images, 2)),
    }
    results = {}
    for label in given.networks:
        model, inputs = networks[label]
        start = time.perf_counter()
        held_out, learnt = slice(0, 500), slice(500, None)
        train(model, inputs[learnt], labels[learnt], given.epochs)
        right = accuracy(model, inputs[held_out], labels[held_out])
        seconds = time.perf_counter() - start
        print(f"-- {label} on {name}: accuracy {right:.3f} after {seconds:.0f} s", flush=True)
        for projection in given.projection:
            for kind in ("trace", "pntk"):
                start = time.perf_counter()
                found = residual_study(
                    model,
                    (inputs[held_out], labels[held_out]),
                    kind=kind,
                    projection=projection,
                    proj_dims=given.proj_dims,
                    seeds=given.seeds,
                    samples=given.samples,
                )
                print(f"{found}\n{time.perf_counter() - start:.0f} s\n", flush=True)
                title = f"{label}-{kind}-{projection}"
                (given.out / f"{title}.png").write_bytes(residual_plot(found))
                results[title] = found.to_dict()
    (given.out / "studies.json").write_text(json.dumps(results, indent=2))
    print(f"{given.out}: figures and studies.json; {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
