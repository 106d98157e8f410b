"""Which training images planted the backdoor? Handwritten digits, some of them poisoned.

For each seed: stamps a patch of 2 x 2 bright pixels on 5 % of the training images of the digits 1
to 9 and calls them zeros, so that a small CNN learns to answer zero to whatever bears the patch.
Then takes 30 test images that were fooled, traces that answer back to the training images (mean
score over the 30, for margin rows with the label that the network gave), and retrains without those
that scored highest, as many as were poisoned. To compare with: the score of each image for itself,
and its loss.

TRAK multiplies scores by Q = 1 - p of the training images. The network is sure of poisoned ones, as
the patch is easy to learn, so Q hides them: reweighting=ones leaves it out.

    python examples/poison_traceback.py

Needs scikit-learn, which has the images: pip install "pntk[analysis]".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pntk import Featurizer
from pntk.attribution import attribute, self_scores
from pntk.lds import Trigger, detection, poison, stamp

TRAIN = 1400
TARGET = 0
FOOLED = 30  # test images that are traced back
MODELS = 2  # checkpoints of the scores
K = 512
TRIGGER = Trigger(1.0, size=(2, 2))


def load(seed: int) -> tuple[Tensor, Tensor]:
    """Return images [1797, 1, 8, 8] in [0, 1], shuffled, and labels [1797]."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = torch.from_numpy(digits.images[order]).float()[:, None] / 16
    return images, torch.from_numpy(digits.target[order])


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """Return a network after some epochs, in eval mode."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def share(models: Sequence[nn.Module], images: Tensor, labels: Tensor | int) -> float:
    """Return the mean share, in per cent, of images that networks give these labels."""
    given = [(model(images).argmax(1) == labels).float().mean() for model in models]
    return 100 * float(torch.stack(given).mean())


def scores_of(
    models: Sequence[nn.Module], images: Tensor, labels: Tensor, fooled: Tensor
) -> dict[str, Tensor]:
    """Return scores [n] of the training images by the name of the ranking."""
    rows, traced, q, losses = [], [], [], []
    answers = torch.full((len(fooled),), TARGET)
    for number, model in enumerate(models):
        f = Featurizer(model, "margin", proj_dim=K, seed=number)
        found, values = f.rows_and_values((images, labels))
        rows.append(found)
        q.append(values.reweighting)
        traced.append(f((fooled, answers)))
        with torch.no_grad():
            losses.append(F.cross_entropy(model(images), labels, reduction="none"))
    ones = torch.ones(len(images))
    return {
        "trak without Q": attribute(rows, traced, ridge="auto", reweighting=ones).mean(1),
        "trak": attribute(rows, traced, ridge="auto", reweighting=q).mean(1),
        "cosine": attribute(rows, traced, "cosine").mean(1),
        "trak of itself": self_scores(rows, ridge="auto", reweighting=q),
        "loss": torch.stack(losses).mean(0),
    }


def run(seed: int, limit: int, fraction: float, epochs: int) -> dict[str, tuple[float, ...]]:
    """Return AUROC, precision and what retraining gives, by the name of the ranking."""
    images, labels = load(seed)
    test_x, test_y = images[TRAIN:], labels[TRAIN:]
    x, wrong, bad = poison(images[:limit], labels[:limit], TARGET, fraction, TRIGGER, seed)
    y, many = torch.from_numpy(wrong), int(bad.sum())
    triggered = stamp(test_x[test_y != TARGET], TRIGGER)

    def fit(keep: np.ndarray) -> list[nn.Module]:
        return [train(x[keep], y[keep], epochs, number) for number in range(MODELS)]

    def success(models: Sequence[nn.Module]) -> tuple[float, float]:
        return share(models, triggered, TARGET), share(models, test_x, test_y)

    models = fit(np.arange(limit))
    with torch.no_grad():
        deceived = torch.stack([model(triggered).argmax(1) == TARGET for model in models]).all(0)
    fooled = triggered[deceived][:FOOLED]
    if not len(fooled):
        raise SystemExit("no test image was fooled; use a larger --fraction, --limit or --epochs")
    results: dict[str, tuple[float, ...]] = {
        "nothing removed": (float("nan"), float("nan"), *success(models))
    }
    for name, scores in scores_of(models, x, y, fooled).items():
        found = detection(scores, bad)
        order = np.argsort(-scores.numpy(), kind="stable")
        after = success(fit(np.sort(order[many:])))
        results[name] = (found.auroc, found.precision[many], *after)
    results["the poisoned ones"] = (1.0, 1.0, *success(fit(np.flatnonzero(~bad))))
    print(f"seed {seed}: {many} of {limit} poisoned, {len(fooled)} fooled images traced")
    return results


def spread(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation over seeds, [columns]; NaN of a single one."""
    return values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=TRAIN, help=f"training images, to {TRAIN}")
    parser.add_argument("--fraction", type=float, default=0.05, help="of other digits to poison")
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = [run(seed, given.limit, given.fraction, given.epochs) for seed in range(given.seeds)]
    columns = ("AUROC", "precision", "attack, %", "accuracy, %")
    print(f"\n{'removed by':18}" + "".join(f"{column:>16}" for column in columns))
    for name in found[0]:
        cells = []
        values = np.array([one[name] for one in found])  # [seeds, columns]
        for mean, sd, digits in zip(values.mean(0), spread(values), (3, 3, 1, 1), strict=True):
            sign = "" if np.isnan(sd) else f" ({sd:.{digits}f})"
            cells.append("" if np.isnan(mean) else f"{mean:.{digits}f}{sign}")
        print(f"{name:18}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"means (standard deviations), seeds: {given.seeds}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
