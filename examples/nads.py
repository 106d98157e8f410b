"""Which features does LeNet prefer? Its neural anisotropy directions, and what they do.

Finds the directions (NADs) of a few hundred random LeNets, trains fresh ones on data that only one
of the directions separates, and poisons handwritten digits along them: accuracy on such data falls
with the index of the NAD, and poison along the first ones keeps a network from learning digits.
After Ortiz-Jimenez et al. (2020), https://arxiv.org/abs/2006.09717.

    python examples/nads.py --out nads

Writes pictures into the folder, and measurements, from which a second call goes on. Needs
scikit-learn and matplotlib: pip install "pntk[analysis]".
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from pntk.nads.bias_plots import plot_bias_curve, plot_bias_map
from pntk.nads.data import fourier_grid
from pntk.nads.directional import directional_bias
from pntk.nads.gradient_covariance import GradientCovariance
from pntk.nads.networks import LeNet
from pntk.nads.poison import poison_experiment
from pntk.nads.search import kept_nads
from pntk.nads.training import Training

SHAPE = (1, 32, 32)
HELD_OUT = 360


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images [n, 1, 32, 32] in [0, 1] and labels, to train on and to test on."""
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    images = F.interpolate(images, size=SHAPE[1:], mode="bilinear")
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    return (images[train], labels[train]), (images[test], labels[test])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("nads"), help="folder")
    parser.add_argument("--networks", type=int, default=400)
    parser.add_argument("--jacobian", default="finite_difference")
    parser.add_argument("--indices", type=int, nargs="+", default=[0, 2, 10, 50, 300])
    parser.add_argument("--sigma", type=float, default=1.0, help="noise; the paper's is 3")
    parser.add_argument("--samples", type=int, default=4000, help="the paper's are 10000")
    parser.add_argument("--epochs", type=int, default=10, help="the paper's are 20")
    parser.add_argument("--epsilon", type=float, default=1.0, help="of the poison")
    parser.add_argument("--fourier", type=int, metavar="STEP", help="also draw a map of waves")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    most = min(given.networks - 1, math.prod(SHAPE))
    if max(given.indices) >= most:
        parser.error(
            f"--indices: {given.networks} networks give {most} directions, 0 to {most - 1}; draw "
            "more with --networks, or name smaller ones"
        )
    given.out.mkdir(exist_ok=True)
    began = time.perf_counter()

    point = torch.randn(SHAPE, generator=torch.Generator().manual_seed(given.seed))
    finder = GradientCovariance(point, LeNet, jacobian=given.jacobian, seed=given.seed)
    nads = kept_nads(finder, given.networks, given.out / "lenet.h5")
    for name, value in nads.isotropy()._asdict().items():
        print(f"{name:20} {value:.4g}")
    for view in ("pixel", "fourier"):
        nads.visualize_nads(10, view).savefig(given.out / f"nads_{view}.png", dpi=160)
    nads.visualize_spectrum().savefig(given.out / "spectrum.png", dpi=160)
    print(f"directions after {time.perf_counter() - began:.0f} s\n")

    bias = directional_bias(
        LeNet,
        nads[given.indices],
        {"num_classes": 2},
        num_train=given.samples,
        num_test=given.samples,
        sigma=given.sigma,
        training=Training(epochs=given.epochs),
        seed=given.seed,
        path=given.out / "bias.json",
    )
    print("NAD  test accuracy of data along it")
    for index, value in zip(given.indices, bias.accuracy, strict=True):
        print(f"{index:3}  {value:.3f}")
    plot_bias_curve(given.indices, {"LeNet": bias.accuracy}).savefig(given.out / "bias.png")
    print(f"after {time.perf_counter() - began:.0f} s\n")

    train, test = digits()
    poisoned = poison_experiment(
        LeNet,
        train,
        test,
        nads.directions,
        [index for index in given.indices if index + 5 <= len(nads)],  # 10 classes take 5
        {"num_classes": 10},
        epsilon=given.epsilon,
        training=Training(epochs=30, lr=0.1, momentum=0.9, weight_decay=5e-4),
        seed=given.seed,
        path=given.out / "poison.json",
    )
    print(f"NAD  accuracy on clean digits after training on poisoned ones; {poisoned.clean:.3f}")
    print("     after training on clean ones")
    for index, value in zip(poisoned.indices, poisoned.poisoned, strict=True):
        print(f"{index:3}  {value:.3f}")
    curves = {"LeNet": poisoned.poisoned}
    plot_bias_curve(poisoned.indices, curves, guess=0.1, clean=poisoned.clean).savefig(
        given.out / "poison.png"
    )

    if given.fourier is not None:
        grid = fourier_grid(SHAPE, given.fourier)
        waves = directional_bias(
            LeNet,
            grid.directions,
            {"num_classes": 2},
            num_train=given.samples,
            num_test=given.samples,
            sigma=given.sigma,
            training=Training(epochs=given.epochs),
            seed=given.seed,
            path=given.out / "waves.json",
        )
        plot_bias_map(grid.frequencies, waves.accuracy, title="LeNet").savefig(
            given.out / "waves.png"
        )
    print(f"\n{given.out}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
