"""Rows estimate inner products without bias, and no worse than independent signs would.

For a dense Rademacher map with k rows, Var <phi, phi'> =
(|g|^2 |g'|^2 + <g, g'>^2 - 2 sum_i g_i^2 g'_i^2) / k. Ratios below are to this.
"""

import pytest
import torch
from torch import nn

from pntk.projection import ProjectionSpec
from pntk.projection.dispatch import Projector

SEEDS = 200  # the standard error of a variance ratio is then about 0.1


def estimates(spec_of, gradients, seeds=SEEDS):
    """Return <phi_i, phi_j> for each seed, [seeds, n, n]; gradients: name -> [n, *shape]."""
    found = []
    shapes = {name: tuple(g.shape[1:]) for name, g in gradients.items()}
    n = len(next(iter(gradients.values())))
    for seed in range(seeds):
        projector = Projector(
            spec_of(seed), shapes, dtype=torch.float32, device=torch.device("cpu")
        )
        rows = projector.empty_rows(n)
        for name, g in gradients.items():
            projector.sketch(name).add_gradient(g.float(), rows)
        found.append(rows @ rows.T)
    return torch.stack(found).double()


def flat(gradients):
    return torch.cat([g.double().flatten(1) for g in gradients.values()], dim=1)


def dense_variance(g, k):
    """Variance of each kernel entry under independent signs, [n, n]."""
    norms = (g**2).sum(1)
    return (norms[:, None] * norms + (g @ g.T) ** 2 - 2 * (g**2) @ (g**2).T) / k


def variance_ratios(gradients, k, seeds=SEEDS):
    """Return (off-diagonal, diagonal) mean variance over the dense one, and the kurtosis."""
    g = flat(gradients)
    error = estimates(lambda seed: ProjectionSpec("hadamard", k, seed), gradients, seeds)
    error = error - g @ g.T
    off = ~torch.eye(len(g), dtype=torch.bool)
    ratio = (error**2).mean(0) / dense_variance(g, k)
    standard = (error / error.std(0))[:, off]
    return float(ratio[off].mean()), float(ratio.diag().mean()), float((standard**4).mean())


@pytest.mark.parametrize(
    "family_and_k", [("hadamard", 64), ("hadamard", 8), ("rademacher", 10), ("normal", 10)]
)
@pytest.mark.parametrize("shape", [(100,), (20, 17), (9, 5, 2, 2)], ids=str)
def test_unbiased(family_and_k, shape):
    base = torch.randn(1, *shape)
    gradients = {"w": base + torch.randn(4, *shape), "v": torch.randn(4, 3)}
    g = flat(gradients)
    found = estimates(lambda seed: ProjectionSpec(*family_and_k, seed), gradients)
    z = (found.mean(0) - g @ g.T) / (found.std(0) / SEEDS**0.5)
    assert float(z.abs().max()) < 4.5


def activations(n, size, scale=0.0):
    """Nonnegative vectors, as ReLU makes them; with ``scale``, three large common coordinates."""
    x = torch.randn(n, size).relu()
    x[:, torch.randperm(size)[:3]] += scale
    return x


def rank_one(o, i, scale=8.0, n=4):
    return torch.einsum("no,ni->noi", torch.randn(n, o), activations(n, i, scale))


def over_nine_positions(scale):
    return rank_one(64, 32, scale)[..., None, None].expand(-1, -1, -1, 3, 3)


# name -> (gradients, most off the diagonal, most on it). Without the shifts of the tiles that share
# diagonals these ratios reach 2 to 7.
CASES = {
    "rank one, shared outliers": (lambda: rank_one(64, 64), 1.15, 1.15),
    "256 x 64": (lambda: rank_one(256, 64), 1.5, 1.5),
    "64 x 256": (lambda: rank_one(64, 256), 1.15, 1.15),
    "repeated over nine positions": (lambda: over_nine_positions(0), 1.15, 1.6),
    "nine positions and outliers": (lambda: over_nine_positions(8), 1.6, 1.8),
}


@pytest.mark.parametrize("name", CASES)
def test_variance_is_about_that_of_independent_signs(name):
    make, most_off, most_diagonal = CASES[name]
    off, diagonal, kurtosis = variance_ratios({"w": make()}, 1024)
    print(f"{name}: off-diagonal {off:.2f}, diagonal {diagonal:.2f}, kurtosis {kurtosis:.1f}")
    assert off < most_off
    assert diagonal < most_diagonal
    assert 1.5 < kurtosis < 5


def cnn_gradients(samples=4):
    """Per-sample gradients of the summed logits of a small CNN on smooth, nonnegative images."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    coarse = torch.rand(samples, 1, 3, 3)
    images = nn.functional.interpolate(coarse, (8, 8), mode="bilinear", align_corners=True)
    names, params = zip(*model.named_parameters(), strict=True)
    each = [torch.autograd.grad(model(image[None]).sum(), params) for image in images]
    return {name: torch.stack(g) for name, g in zip(names, zip(*each, strict=True), strict=True)}


def test_variance_on_the_gradients_of_a_cnn():
    off, diagonal, kurtosis = variance_ratios(cnn_gradients(), 1024)
    print(f"CNN: off-diagonal {off:.2f}, diagonal {diagonal:.2f}, kurtosis {kurtosis:.1f}")
    assert off < 1.15
    assert diagonal < 1.15
    assert 1.5 < kurtosis < 5


@pytest.mark.parametrize("family", ["rademacher", "normal"])
def test_variance_of_the_dense_families(family):
    gradients = {"w": rank_one(12, 12)}
    g = flat(gradients)
    found = estimates(lambda seed: ProjectionSpec(family, 64, seed), gradients)
    expected = dense_variance(g, 64)
    if family == "normal":
        expected = expected + 2 * (g**2) @ (g**2).T / 64
    ratio = (found - g @ g.T).pow(2).mean(0) / expected
    print(f"{family}: {float(ratio.mean()):.2f}")
    assert 0.8 < float(ratio.mean()) < 1.2


def test_outputs_of_one_parameter_are_independent():
    """A sum of two outputs' sketches keeps no cross term: E<phi, phi'> = sum_c <g_c, g'_c>."""
    g = torch.randn(2, 2, 12, 9)  # [n, c, *shape]
    found = []
    for seed in range(SEEDS):
        projector = Projector(
            ProjectionSpec("hadamard", 64, seed),
            {"w": (12, 9)},
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        rows = projector.empty_rows(2)
        for c in range(2):
            projector.sketch("w").add_gradient(g[:, c], rows, c)
        found.append(rows @ rows.T)
    found = torch.stack(found).double()
    flat_g = g.double().flatten(1)
    z = (found.mean(0) - flat_g @ flat_g.T) / (found.std(0) / SEEDS**0.5)
    assert float(z.abs().max()) < 4
