"""What the entry does without anatome, and with something that stands for it."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")
pytest.importorskip("psutil")
pytest.importorskip("sklearn", reason="the network is trained on scikit-learn's digits")

from benchmarks import anatome
from benchmarks.registry import CheckFailed, Options, Unavailable, run
from pntk.representation.fourier_basis import fourier_basis

QUICK = Options(torch.device("cpu"), repeats=1, quick=True)


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    return model, torch.rand(9, 1, 8, 8), torch.randint(10, (9,))


def stand_in(monkeypatch, wrong=0.0):
    """Modules with the functions of anatome that the entry calls."""

    def landscape2d(model, data, criterion, xs, ys, step):
        x, y = (
            module._filter_normed_random_direction(model),
            module._filter_normed_random_direction(model),
        )
        axis = np.arange(-1, 1 + step / 2, step)
        found = torch.zeros(len(axis), len(axis))
        names = [name for name, _ in model.named_parameters()]
        for i, a in enumerate(axis):
            for j, b in enumerate(axis):
                moved = {
                    n: p + a * u + b * v
                    for n, p, u, v in zip(names, model.parameters(), x, y, strict=True)
                }
                found[i, j] = (
                    criterion(torch.func.functional_call(model, moved, data[0]), data[1]) + wrong
                )
        return None, None, found

    module = types.SimpleNamespace(landscape2d=landscape2d, _filter_normed_random_direction=None)
    waves = fourier_basis((8, 8)).view(8, 8, 8, 8).float()

    def fourier_map(model, data, criterion, norm):
        return torch.tensor(
            [
                [criterion(model((data[0] + norm * w).clamp(0, 1)), data[1]) for w in row]
                for row in waves
            ]
        )

    fourier = types.SimpleNamespace(
        add_fourier_noise=lambda at, images, norm: images + norm * waves[at],
        fourier_map=fourier_map,
    )
    monkeypatch.setattr(anatome, "_import_anatome", lambda: (module, fourier))
    monkeypatch.setattr(anatome, "_digits", lambda count: small())


def test_a_row_for_each(monkeypatch):
    stand_in(monkeypatch)
    with torch.no_grad():
        found = run(anatome.Anatome(), QUICK)
    assert [check.what for check in found.checks] == ["landscape", "Fourier map of its waves"]
    assert len(found.rows) == 2 and not found.failures
    assert all(row.ratios["anatome / pntk, time"].median > 0 for row in found.rows)


def test_wrong_losses_are_refused(monkeypatch):
    stand_in(monkeypatch, wrong=0.01)
    with pytest.raises(CheckFailed, match="landscape: relative error"):
        anatome.Anatome().check(QUICK)


def test_missing_is_said(monkeypatch):
    monkeypatch.delitem(sys.modules, "anatome", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="put a checkout of it on PYTHONPATH"):
        anatome.Anatome().check(QUICK)
