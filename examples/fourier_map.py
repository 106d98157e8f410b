"""Which waves does a network mind? A Fourier map of a LeNet on handwritten digits.

Trains the demo's LeNet on scikit-learn's digits with and without Gaussian noise, and draws the
error of both on the test digits with each wave of the Fourier basis added.

    python examples/fourier_map.py --out fourier

writes fourier-plain.png and fourier-noise.png.

Needs scikit-learn and matplotlib: pip install "pntk[analysis]".
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F

from pntk.cli import digits
from pntk.representation import fourier_map


def trained(images: torch.Tensor, labels: torch.Tensor, noise: float, epochs: int) -> nn.Module:
    """Return a network trained on images with Gaussian noise of this deviation."""
    torch.manual_seed(0)
    model = digits.network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            noisy = images[batch] + noise * torch.randn_like(images[batch])
            loss = F.cross_entropy(model(noisy.clamp(0, 1)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="fourier", help="start of the names of the pictures")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--norm", type=float, default=2.0, help="of what is added")
    given = parser.parse_args()

    train, test = digits.load()
    for name, noise in (("plain", 0.0), ("noise", 0.2)):
        model = trained(*train, noise, given.epochs)
        began = time.perf_counter()
        found = fourier_map(model, test, given.norm, sign="random")
        seconds = time.perf_counter() - began
        found.plot(f"{given.out}-{name}.png")
        print(
            f"{name}: error {found.clean:.3f} as they are; with a wave {found.values.mean():.3f} "
            f"on average and {found.values.max():.3f} at most; {seconds:.2f} s"
        )


if __name__ == "__main__":
    main()
