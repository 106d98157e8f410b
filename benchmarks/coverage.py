"""How often error bars of kernel entries hold the exact value, over seeds of the projection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.registry import Check, Entry, Options, Row, progress, require
from benchmarks.variance import dense_variance
from pntk import Featurizer
from pntk.models import MLP, LeNet
from pntk.ntk.uncertainty import interval, kernel_std
from pntk.ntk.variance import variance_ratio

SEEDS = {"pntk": 300, "margin": 100, "trace": 100}  # the errors of pntk's pairs go together
SAMPLES, PILOT = 24, 12  # that are judged, and others that the ratio is made of
LEVEL = 0.95

MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits CNN": lambda: LeNet(image_size=8),
    "MLP": lambda: MLP(64, [128, 64]),
}
CASES = [
    ("hadamard", 256),
    ("hadamard", 1024),
    ("hadamard", 4096),
    ("rademacher", 256),
    ("rademacher", 1024),
    ("normal", 256),
]
TRACE = [("hadamard", 1024), ("rademacher", 256)]  # ten times the work


def trained(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a float64 network trained for a moment on scikit-learn's digits, and its data."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(10):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.double().eval(), x.double(), y


class Coverage(Entry):
    """Calibration of error bars."""

    name = "coverage"
    summary = (
        f"Share of kernel entries whose {LEVEL:.0%} interval holds the exact value, over seeds and "
        "pairs of digits. Ratios come from other digits, by the formula of `pntk.ntk.variance`, "
        "for each seed; the standard error of the coverage is in brackets."
    )

    def check(self, options: Options) -> list[Check]:
        model, x, y = trained(MODELS["MLP"])
        batch = x[:PILOT], y[:PILOT]
        gradients = Featurizer(model, "margin", "identity")(batch)
        gradients = gradients / gradients.norm(dim=1, keepdim=True)
        found = variance_ratio(Featurizer(model, "margin", "rademacher", 64), batch)
        cosines = gradients @ gradients.T
        off = ~torch.eye(PILOT, dtype=torch.bool)
        expected = 64 * dense_variance(gradients, 64)[off].sum() / (1 + cosines[off] ** 2).sum()
        error = abs(found.off_diagonal - float(expected))
        return [require("ratio of independent signs against their variance", error, 1e-10)]

    def measure(self, options: Options) -> list[Row]:
        rows = []
        for title, make in list(MODELS.items())[: 1 if options.quick else None]:
            trained_once = trained(make)
            for output in SEEDS:
                cases = TRACE if output == "trace" else CASES
                for family, k in cases[:1] if options.quick else cases:
                    case = f"{title}, {output}, {family}, k={k}"
                    progress(case)
                    seeds = 4 if options.quick else SEEDS[output]
                    rows.append(measure(case, trained_once, output, family, k, seeds))
        return rows


def measure(
    case: str,
    trained_once: tuple[nn.Module, Tensor, Tensor],
    output: str,
    family: str,
    k: int,
    seeds: int,
) -> Row:
    """Return the coverage of each kind of entry."""
    model, x, y = trained_once
    judged, pilot = ((x[i], y[i]) for i in (slice(SAMPLES), slice(SAMPLES, SAMPLES + PILOT)))
    gradients = Featurizer(model, output, "identity")(judged)
    exact = gradients @ gradients.T
    norms = exact.diagonal().sqrt()
    off = torch.ones_like(exact, dtype=torch.bool).triu(1)
    held: dict[str, list[float]] = {"off-diagonal": [], "diagonal": [], "cosine": []}
    ratios = []
    for seed in range(seeds):
        featurizer = Featurizer(model, output, family, k, seed, check=False)
        # of dense families the ratio is that of any seed
        if family == "hadamard" or not seed:
            ratio = variance_ratio(featurizer, pilot)
        rows = featurizer(judged)
        inside = within(exact, *kernel_std(rows, variance_ratio=ratio))
        held["off-diagonal"].append(float(inside[off].double().mean()))
        held["diagonal"].append(float(inside.diagonal().double().mean()))
        cosines = kernel_std(rows, normalize=True, variance_ratio=ratio)
        inside = within(exact / norms / norms[:, None], *cosines)
        held["cosine"].append(float(inside[off].double().mean()))
        ratios.append(ratio.off_diagonal)
    found = torch.tensor(ratios)
    return Row(
        case,
        {kind: shown(values) for kind, values in held.items()},
        {
            "ratio": float(found.mean()),
            "least": float(found.min()),
            "most": float(found.max()),
            "seeds": seeds,
        },
    )


def within(exact: Tensor, kernel: Tensor, std: Tensor) -> Tensor:
    low, high = interval(kernel, std, LEVEL)
    return (low <= exact) & (exact <= high)


def shown(values: list[float]) -> str:
    found = torch.tensor(values, dtype=torch.float64)
    return f"{float(found.mean()):.1%} ({float(found.std()) / len(found) ** 0.5:.1%})"
