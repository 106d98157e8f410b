"""Attribution against TRAK: the same script, its LDS and its time."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.registry import Check, Entry, Options, Row, Unavailable, progress, require
from benchmarks.timing import interleaved
from pntk import Featurizer, attribute
from pntk.lds import LDS, Retrained, lds, retrain_on_subsets
from pntk.models import LeNet
from pntk.outputs import Margin
from pntk.trak_adapter import TRAKer

CLASSES = 10
BOUND = 1e-3  # of scores against the formula in float64
NOISE = 0.05  # of an LDS over 100 targets and 80 subsets at these k


class Lds(Entry):
    """LDS and time of TRAK, of its script with pntk imported, and of pntk's own interface."""

    name = "lds"
    summary = (
        "TRAK scores of three small networks on scikit-learn's digits, five checkpoints, no "
        "ridge: the linear datamodeling score over models retrained on halves, and the time of "
        "featurizing and scoring."
    )

    def check(self, options: Options) -> list[Check]:
        """Compare our scores with the formula in float64."""
        problem = Problem("MLP", options)
        train, test, weights = problem.rows(problem.models[:2], 32)
        found = attribute(train, test, reweighting=weights)
        expected = _formula(train, test, weights)
        error = float((found.double() - expected).norm() / expected.norm())
        return [require("scores against the formula", error, BOUND)]

    def measure(self, options: Options) -> list[Row]:
        """Score with each, and refuse an LDS of ours that is worse than noise allows."""
        theirs = _import_traker()
        rows = []
        for kind in ("MLP", "CNN", "LeNet"):
            problem = Problem(kind, options)
            progress(f"{kind}: retraining {problem.subsets} models")
            retrained = problem.retrain()
            for k in (16,) if options.quick else (128, 256):
                rows.append(self._at(problem, retrained, k, theirs, options))
        return rows

    def _at(
        self, problem: Problem, retrained: Retrained, k: int, theirs: Any, options: Options
    ) -> Row:
        runs: dict[str, Callable[[], Any]] = {
            "TRAK": lambda: problem.script(theirs, k, use_half_precision=False),
            "pntk, TRAK's script": lambda: problem.script(TRAKer, k),
            "pntk": lambda: problem.native(k),
        }
        quality = {name: _quality(run(), retrained) for name, run in runs.items()}
        base = quality["TRAK"].mean
        for name in ("pntk, TRAK's script", "pntk"):
            worse = max(0.0, base - quality[name].mean)
            what = f"{problem.kind}, k = {k}: LDS of {name} below TRAK's"
            self.checks.append(require(what, worse, 1.0 if options.quick else NOISE))
        times = interleaved(runs, min(options.repeats, 5), warmup=0, device=options.device)
        return Row(
            f"{problem.kind} of {problem.size:,} parameters, k = {k}",
            {
                f"TRAK / {name}, time": times.ratio("TRAK", name)
                for name in ("pntk, TRAK's script", "pntk")
            },
            {
                **{f"LDS of {name}": _show(found) for name, found in quality.items()},
                **{f"{name} [s]": times.of(name) for name in runs},
            },
        )


class Problem:
    """Digits, networks trained on them, and the two ways to score."""

    def __init__(self, kind: str, options: Options) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise Unavailable(f"scikit-learn, whose digits are used, is missing: {error}") from None
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.data))
        n, m = (60, 10) if options.quick else (500, 100)
        images = torch.tensor(digits.images[order] / 16, dtype=torch.float32)[:, None]
        labels = torch.tensor(digits.target[order])
        self.kind = kind
        self.train = images[:n], labels[:n]
        self.test = images[n : n + m], labels[n : n + m]
        self.subsets, self.each = (4, 1) if options.quick else (80, 2)
        self.epochs = 2 if options.quick else 20
        self.models = [self.fit(np.arange(n), seed) for seed in range(2 if options.quick else 5)]
        self.size = sum(p.numel() for p in self.models[0].parameters())

    def network(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        if self.kind == "MLP":
            layers = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(32, CLASSES))
        if self.kind == "LeNet":
            return LeNet(image_size=8)
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, CLASSES)),
        )

    def fit(self, chosen: Any, seed: int) -> nn.Module:
        """Return a network trained on some of the digits."""
        model, (images, labels) = self.network(seed), self.train
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        draw = torch.Generator().manual_seed(seed)
        indices = torch.as_tensor(chosen)
        for _ in range(self.epochs):
            for batch in indices[torch.randperm(len(indices), generator=draw)].split(50):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
        return model.eval()

    def retrain(self) -> Retrained:
        """Return margins of the test digits under models that were trained on halves."""

        def one(model: nn.Module) -> np.ndarray:
            with torch.no_grad():
                return Margin()(model, self.test).values.numpy()

        def margins(chosen: Any, number: int) -> np.ndarray:
            seeds = range(1000 * (number + 1), 1000 * (number + 1) + self.each)
            return np.mean([one(self.fit(chosen, seed)) for seed in seeds], axis=0)

        n = len(self.train[1])
        return retrain_on_subsets(margins, n, 0.5, self.subsets, seed=1, progress=False)

    def script(self, traker_class: Any, k: int, **options: Any) -> np.ndarray:
        """Return scores [n, m] by the calls of a TRAK script."""
        n, m = len(self.train[1]), len(self.test[1])
        with tempfile.TemporaryDirectory() as folder:
            traker = traker_class(
                model=self.network(0),
                task="image_classification",
                train_set_size=n,
                save_dir=folder,
                device="cpu",
                proj_dim=k,
                logging_level=logging.ERROR,
                **options,
            )
            for number, model in enumerate(self.models):
                traker.load_checkpoint(model.state_dict(), model_id=number)
                traker.featurize(batch=list(self.train), num_samples=n)
            traker.finalize_features()
            for number, model in enumerate(self.models):
                traker.start_scoring_checkpoint(
                    exp_name="test",
                    checkpoint=model.state_dict(),
                    model_id=number,
                    num_targets=m,
                )
                traker.score(batch=list(self.test), num_samples=m)
            return np.array(traker.finalize_scores(exp_name="test"))

    def native(self, k: int) -> np.ndarray:
        """Return scores [n, m] by pntk's own interface."""
        train, test, weights = self.rows(self.models, k)
        return attribute(train, test, reweighting=weights).numpy()

    def rows(
        self, models: list[nn.Module], k: int
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return rows of both splits and 1 - p of the train split, an entry a checkpoint."""
        train, test, weights = [], [], []
        for seed, model in enumerate(models):
            featurizer = Featurizer(model, "margin", proj_dim=k, seed=seed)
            rows, values = featurizer.rows_and_values(self.train)
            train.append(rows)
            weights.append(values.reweighting)
            test.append(featurizer(self.test))
        return train, test, weights


def _formula(train: list[Tensor], test: list[Tensor], weights: list[Tensor]) -> Tensor:
    scores = [
        (a.double() @ torch.linalg.inv(a.double().T @ a.double()) @ b.double().T)
        for a, b in zip(train, test, strict=True)
    ]
    mean = torch.stack([w.double().flatten() for w in weights]).mean(0)
    return torch.stack(scores).mean(0) * mean[:, None]


def _quality(scores: np.ndarray, retrained: Retrained) -> LDS:
    return lds(scores, retrained.outputs, retrained.subsets)


def _show(found: LDS) -> str:
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def _import_traker() -> Any:
    try:
        from trak import TRAKer as Theirs  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise Unavailable(
            f"TRAK cannot be imported ({error}); install it with: pip install traker"
        ) from None
    return Theirs
