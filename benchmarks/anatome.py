"""Against anatome: loss landscapes and Fourier maps of small convolutional networks."""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import sys
import types
import typing
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.registry import Check, Entry, Options, Row, Unavailable, require
from benchmarks.timing import interleaved, threads
from pntk.models import LeNet
from pntk.representation.directions import random_direction
from pntk.representation.fourier import fourier_map
from pntk.representation.landscape import loss_landscape

BOUND = 1e-5
NORM = 1.0
POINTS = 11


class Anatome(Entry):
    """Time of a landscape and of a Fourier map, on one thread and on all that PyTorch takes."""

    name = "anatome"
    summary = (
        "A 2-D loss landscape and a Fourier map of LeNet on digits (8x8, 360 images) and on "
        "28x28 images (200): pntk against anatome, the same losses."
    )

    def check(self, options: Options) -> list[Check]:
        """Compare losses on anatome's own directions and waves."""
        landscape, fourier = _import_anatome()
        model, images, labels = _digits(32 if options.quick else 360)
        checks = []
        directions = [random_direction(model, seed) for seed in (0, 1)]
        with threads(1), torch.no_grad():
            theirs = _their_landscape(landscape, model, images, labels, directions, 5)
            ours = _our_landscape(model, images, labels, directions, 5)
            checks.append(require("landscape", _error(ours, theirs.numpy()), BOUND))
            waves = their_waves(fourier, images.shape[-1])
            upper = torch.triu_indices(*waves.shape[:2])  # those that it computes
            theirs = _their_map(fourier, model, images, labels)[upper[0], upper[1]]
            ours = fourier_map(
                model, (images, labels), NORM, criterion="loss", basis=waves[upper[0], upper[1]],
                progress=False,
            ).values  # fmt: skip
            checks.append(require("Fourier map of its waves", _error(ours, theirs.numpy()), BOUND))
        return checks

    def measure(self, options: Options) -> list[Row]:
        """Time both, alternately."""
        landscape, fourier = _import_anatome()
        self.notes.append(
            "anatome's waves pair (i, j) with (h-1-i, w-1-j), which is no conjugate pair for even "
            "sizes, so maps are timed with each library's own waves: 36 of 64 for anatome "
            "and 34 for pntk at 8x8, 406 and 394 at 28x28."
        )
        cases = {"LeNet, digits 8x8": _digits(32 if options.quick else 360)}
        if not options.quick:
            cases["LeNet, 28x28"] = _larger(200)
        rows = []
        for case, (model, images, labels) in cases.items():
            directions = [random_direction(model, seed) for seed in (0, 1)]
            points = POINTS if images.shape[-1] < 28 else 5
            work = {
                "landscape": (
                    lambda a=(landscape, model, images, labels, directions, points): (
                        _their_landscape(*a)
                    ),
                    lambda a=(model, images, labels, directions, points): _our_landscape(*a),
                ),
                "Fourier map": (
                    lambda a=(fourier, model, images, labels): _their_map(*a),
                    lambda m=model, d=(images, labels): fourier_map(
                        m, d, NORM, criterion="loss", progress=False
                    ),
                ),
            }
            for what, (theirs, ours) in work.items():
                for count in sorted({1, torch.get_num_threads()}):
                    name = f"{case}, {what}, threads: {count}"
                    make = functools.partial(_row, name, theirs, ours, options, count)
                    rows.append(self.attempt(name, options, make))
        return rows


def their_waves(fourier: Any, size: int) -> Tensor:
    """Return what anatome adds for each index at norm 1, [h, w, h, w]."""
    grey, small = torch.full((1, 1, size, size), 0.5), 0.1
    rows = [
        torch.stack([
            (fourier.add_fourier_noise((i, j), grey, small) - grey)[0, 0] / small
            for j in range(size)
        ])
        for i in range(size)
    ]  # fmt: skip
    return torch.stack(rows)


def _row(case: str, theirs: Any, ours: Any, options: Options, count: int) -> Row:
    with threads(count):
        times = interleaved({"anatome": theirs, "pntk": ours}, options.repeats, warmup=1)
    return Row(
        case,
        {"anatome / pntk, time": times.ratio("anatome", "pntk")},
        {"anatome [ms]": times.of("anatome").times(1e3), "pntk [ms]": times.of("pntk").times(1e3)},
    )


def _their_landscape(
    module: Any, model: nn.Module, images: Tensor, labels: Tensor, directions: Any, points: int
) -> Tensor:
    given = iter([list(direction.values()) for direction in directions])
    with _replaced(module, "_filter_normed_random_direction", lambda _: next(given)):
        found: Tensor = module.landscape2d(
            model, (images, labels), F.cross_entropy, (-1, 1), (-1, 1), 2 / (points - 1)
        )[2]
    return found[:points, :points]  # rounding of the last coordinate can add one


def _our_landscape(
    model: nn.Module, images: Tensor, labels: Tensor, directions: Any, points: int
) -> np.ndarray:
    data = images, labels
    return loss_landscape(model, data, *directions, points=points, progress=False).losses


def _their_map(module: Any, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    found: Tensor = module.fourier_map(model, (images, labels), F.cross_entropy, NORM)
    return found


def _digits(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    from pntk.cli import digits

    train, test = digits.load()
    return digits.train(train, 2, 0), test.images[:count], test.labels[:count]


def _larger(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return LeNet().eval(), torch.rand(count, 1, 28, 28), torch.randint(10, (count,))


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> typing.Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _import_anatome() -> tuple[Any, Any]:
    """Return its modules landscape and fourier, without the others, which need torchvision.

    ``fourier`` names typing's Optional without importing it, so that is lent to it.
    """
    if "anatome" not in sys.modules:
        found = importlib.util.find_spec("anatome")
        if found is None or not found.submodule_search_locations:
            raise Unavailable("anatome cannot be imported; put a checkout of it on PYTHONPATH")
        package = types.ModuleType("anatome")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["anatome"] = package
    builtins.Optional = typing.Optional  # type: ignore[attr-defined]
    try:
        modules = [importlib.import_module(f"anatome.{name}") for name in ("landscape", "fourier")]
    finally:
        del builtins.Optional  # type: ignore[attr-defined]
    for module in modules:
        module.tqdm = lambda values, ncols=None: values  # type: ignore[attr-defined]
    return modules[0], modules[1]
