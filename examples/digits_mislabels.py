"""Which labels are wrong? Handwritten digits, a tenth of them mislabelled on purpose.

For each seed: gives 10 % of 1,400 training images a wrong label, trains two networks, and ranks the
training images by the score of each for itself (TRAK, influence, dot product of gradients) and, to
compare with, by its loss. Prints how well each ranking finds the wrong labels, and the accuracy on
397 test images after retraining without the first ones, as many as there are wrong labels. Once for
a small network that is stopped early, and once for a wider one that has learnt most wrong labels by
heart, in which their loss is small too.

    python examples/digits_mislabels.py

Needs scikit-learn, which has the images: pip install "pntk[analysis]".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pntk import Featurizer
from pntk.attribution import self_scores
from pntk.lds import detection, mislabel

TRAIN = 1400
MODELS = 2  # checkpoints of the scores
K = 512
SHOWN = 8  # candidates


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    name: str
    width: int
    rate: float
    epochs: int


TRAININGS = (Training("stopped early", 64, 2e-3, 20), Training("learnt by heart", 256, 1e-2, 60))


def load(seed: int) -> tuple[Tensor, Tensor]:
    """Return images [1797, 64] in [0, 1], shuffled, and labels [1797]."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    return torch.from_numpy(digits.data[order]).float() / 16, torch.from_numpy(digits.target[order])


def train(images: Tensor, labels: Tensor, how: Training, seed: int) -> nn.Module:
    """Return a trained network, in eval mode."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, how.width), nn.ReLU(), nn.Linear(how.width, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=how.rate)
    for _ in range(how.epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> float:
    """Return the mean accuracy of some networks, in per cent."""
    right = [(model(images).argmax(1) == labels).float().mean() for model in models]
    return 100 * float(torch.stack(right).mean())


@torch.no_grad()
def losses(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of each image [n]."""
    each = [F.cross_entropy(model(images), labels, reduction="none") for model in models]
    return torch.stack(each).mean(0)


def scores_of(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the score of each training image for itself [n], by the name of the ranking."""
    margin, loss, q = [], [], []
    for number, model in enumerate(models):
        f = Featurizer(model, "margin", proj_dim=K, seed=number)
        rows, values = f.rows_and_values((images, labels))
        margin.append(rows)
        q.append(values.reweighting)
        loss.append(Featurizer(model, "loss", proj_dim=K, seed=number)((images, labels)))
    return {
        "trak": self_scores(margin, "trak", ridge="auto", reweighting=q),
        "influence": self_scores(loss, "influence", ridge="auto"),
        "dot": self_scores(loss, "dot"),
        "loss": losses(models, images, labels),
    }


def run(seed: int, how: Training, limit: int, fraction: float) -> dict[str, tuple[float, ...]]:
    """Return AUROC, precision and the accuracy after retraining, by the name of the ranking."""
    images, true = load(seed)
    x, test_x, test_y = images[:limit], images[TRAIN:], true[TRAIN:]
    wrong, bad = mislabel(true[:limit], fraction, seed=seed)
    y, many = torch.from_numpy(wrong), int(bad.sum())

    def fit(keep: np.ndarray) -> list[nn.Module]:
        return [train(x[keep], y[keep], how, number) for number in range(MODELS)]

    models = fit(np.arange(limit))
    none = (float("nan"),) * 3
    results: dict[str, tuple[float, ...]] = {
        "nothing removed": (*none, accuracy(models, test_x, test_y))
    }
    for name, scores in scores_of(models, x, y).items():
        order = np.argsort(-scores.numpy(), kind="stable")
        found = detection(scores, bad, at=[many // 2, many])
        after = accuracy(fit(np.sort(order[many:])), test_x, test_y)
        results[name] = (found.auroc, *found.precision.values(), after)
        if seed == 0 and name == "influence":
            print(f"seed 0, {many} of {limit} labels wrong; first by influence of itself:")
            for i in order[:SHOWN]:
                verdict = f"is a {true[i]}" if bad[i] else "is right"
                print(f"  image {i}: score {float(scores[i]):.1f}, labelled {y[i]}, {verdict}")
    results["the wrong ones"] = (1.0, 1.0, 1.0, accuracy(fit(np.flatnonzero(~bad)), test_x, test_y))
    return results


def spread(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation over seeds, [columns]; NaN of a single one."""
    return values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=TRAIN, help=f"training images, to {TRAIN}")
    parser.add_argument("--fraction", type=float, default=0.1, help="of labels that are wrong")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    columns = ("AUROC", "half as many", "precision", "accuracy, %")
    for how in TRAININGS:
        print(f"\n-- {how.name}: width {how.width}, {how.epochs} epochs")
        found = [run(seed, how, given.limit, given.fraction) for seed in range(given.seeds)]
        print(f"\n{'removed by':16}" + "".join(f"{column:>16}" for column in columns))
        for name in found[0]:
            cells = []
            values = np.array([one[name] for one in found])  # [seeds, columns]
            for mean, sd, digits in zip(values.mean(0), spread(values), (3, 3, 3, 1), strict=True):
                sign = "" if np.isnan(sd) else f" ({sd:.{digits}f})"
                cells.append("" if np.isnan(mean) else f"{mean:.{digits}f}{sign}")
            print(f"{name:16}" + "".join(f"{cell:>16}" for cell in cells))
    print(
        f"\nmeans (standard deviations), seeds: {given.seeds}; {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
