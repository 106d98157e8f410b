"""How noisy kernel entries are, as a multiple of a dense Rademacher matrix's variance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.registry import Check, Entry, Options, Row, progress, require
from pntk import Featurizer, ProjectionSpec
from pntk.models import LeNet
from pntk.projection.dispatch import Projector
from pntk.projection.reference import projection_matrix

SEEDS = 100
SAMPLES = 12

Shapes = dict[str, tuple[int, ...]]
Gradients = Callable[[], tuple[Shapes, Tensor]]


def projector(family: str, k: int, seed: int, shapes: Shapes) -> Projector:
    """Return a float64 projector on the CPU."""
    spec = ProjectionSpec(family, k, seed)
    return Projector(spec, shapes, dtype=torch.float64, device=torch.device("cpu"))


def sketch(made: Projector, gradients: Tensor) -> Tensor:
    """Return rows [n, k] of gradients [n, p], whose columns follow the projector's shapes."""
    rows = made.empty_rows(len(gradients))
    start = 0
    for name, shape in made.shapes.items():
        size = made.sketch(name).size
        piece = gradients[:, start : start + size].reshape(-1, *shape)
        made.sketch(name).add_gradient(piece, rows)
        start += size
    return rows


def dense_variance(gradients: Tensor, k: int) -> Tensor:
    """Return the variance of each entry [n, n] under independent signs, by its closed form."""
    squares = gradients**2
    norms, kernel = squares.sum(1), gradients @ gradients.T
    return (norms[:, None] * norms + kernel**2 - 2 * squares @ squares.T) / k


def digits_cnn(output: str) -> Gradients:
    """Per-sample gradients of a network trained for a moment on scikit-learn's digits."""

    def make() -> tuple[Shapes, Tensor]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        y = torch.tensor(digits.target)
        torch.manual_seed(0)
        model = LeNet(image_size=8)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(10):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
        model = model.double().eval()
        featurizer = Featurizer(model, output, "identity")
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        return shapes, featurizer((x[:SAMPLES].double(), y[:SAMPLES]))

    return make


def rank_one(shape: tuple[int, ...], *, repeat: int = 1, outliers: int = 0) -> Gradients:
    """Gradients that are outer products; with shared large coordinates, or repeated positions."""

    def make() -> tuple[Shapes, Tensor]:
        generator = torch.Generator().manual_seed(1)
        left = torch.randn(SAMPLES, shape[0], generator=generator, dtype=torch.float64)
        right = torch.randn(SAMPLES, shape[1], generator=generator, dtype=torch.float64)
        left[:, :outliers] *= 20
        right[:, :outliers] *= 20
        outer = left[:, :, None] * right[:, None]
        if repeat > 1:
            outer = outer[..., None].expand(*outer.shape, repeat)
        return {"w": tuple(outer.shape[1:])}, outer.reshape(SAMPLES, -1)

    return make


CASES: list[tuple[str, Gradients, tuple[int, ...]]] = [
    ("digits CNN, pntk", digits_cnn("pntk"), (1024, 4096)),
    ("digits CNN, margin", digits_cnn("margin"), (1024, 4096)),
    ("rank one 512x64", rank_one((512, 64)), (4096,)),
    ("rank one 64x512", rank_one((64, 512)), (4096,)),
    ("rank one 256x256, shared outliers", rank_one((256, 256), outliers=4), (4096,)),
    ("rank one 64x64, nine positions alike", rank_one((64, 64), repeat=9), (4096,)),
]


class Variance(Entry):
    """Statistical efficiency of the sketch."""

    name = "variance"
    summary = (
        "Variance of kernel entries of `hadamard` over that of a dense matrix of independent signs "
        "with the same k (closed form), for real and constructed gradients. Below 1 is better than "
        "dense. Bias is in standard errors of the mean."
    )

    def check(self, options: Options) -> list[Check]:
        shapes: Shapes = {"w": (70, 40), "conv": (9, 20, 3, 3), "b": (33,)}
        made = projector("hadamard", 64, 3, shapes)
        gradients = torch.randn(2, 70 * 40 + 9 * 180 + 33, dtype=torch.float64)
        matrices = [projection_matrix(made.spec, name, s) for name, s in shapes.items()]
        expected = gradients @ torch.cat([torch.from_numpy(m) for m in matrices], dim=1).T
        error = float((sketch(made, gradients) - expected).norm() / expected.norm())
        return [require("hadamard rows against the reference matrices", error, 1e-12)]

    def measure(self, options: Options) -> list[Row]:
        rows = []
        for name, make, widths in CASES[-1:] if options.quick else CASES:
            shapes, gradients = make()
            for k in widths:
                progress(f"{name}, k = {k}")
                rows.append(measure(f"{name}, k={k}", shapes, gradients, k))
        return rows


def measure(case: str, shapes: Shapes, gradients: Tensor, k: int) -> Row:
    """Return the variance ratio, off and on the diagonal, with bias and kurtosis."""
    exact = gradients @ gradients.T
    scale = dense_variance(gradients, k).sqrt()
    errors = torch.stack(
        [
            (rows @ rows.T - exact) / scale
            for rows in (
                sketch(projector("hadamard", k, seed, shapes), gradients) for seed in range(SEEDS)
            )
        ]
    )  # [seeds, n, n], in units of the dense deviation
    off = errors[:, ~torch.eye(len(exact), dtype=torch.bool)]
    on = errors.diagonal(dim1=1, dim2=2)
    mean = off.mean(1)
    bias = float(mean.mean() / (mean.std() / len(mean) ** 0.5))
    kurtosis = float(off.pow(4).mean() / off.pow(2).mean() ** 2)
    return Row(
        case,
        {"off-diagonal": float(off.pow(2).mean()), "diagonal": float(on.pow(2).mean())},
        {"bias (standard errors)": bias, "kurtosis": kurtosis, "seeds": float(SEEDS)},
    )
