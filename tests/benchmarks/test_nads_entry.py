"""The nads entry without the package, and with one that has other gradients."""

import sys
import types

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import nads
from benchmarks.registry import CheckFailed, Options, Unavailable, run

QUICK = Options(torch.device("cpu"), repeats=1, quick=True)


def install(monkeypatch, factor=1.0):
    """Put a package like ``nads`` in its place, whose differences are off by a factor."""

    def numerical_jacobian(model, point, scale=100.0):
        steps = scale * torch.eye(point.numel()).view(-1, *point.shape)
        with torch.no_grad():
            values = model(point + steps) - model(point - steps)
        return factor * values.view(point.shape) / (2 * scale)

    class GradientCovariance:
        def __init__(self, point, network, device, force_eval):
            self.point, self.network = point, network

        @property
        def sample_grad(self):
            return numerical_jacobian(self.network().eval(), self.point)

    package, compute = types.ModuleType("nads"), types.ModuleType("nads.compute")
    compute.numerical_jacobian = numerical_jacobian
    compute.GradientCovariance = GradientCovariance
    package.compute = compute
    monkeypatch.setitem(sys.modules, "nads", package)
    monkeypatch.setitem(sys.modules, "nads.compute", compute)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "nads", None)
    monkeypatch.setitem(sys.modules, "nads.compute", None)
    with pytest.raises(Unavailable, match="pip install nads"):
        nads.Nads().check(QUICK)


def test_a_quick_run(monkeypatch):
    install(monkeypatch)
    result = run(nads.Nads(), QUICK)
    assert not result.failures
    assert [row.case for row in result.rows] == ["LeNet"]
    assert all(ratio.median > 0 for ratio in result.rows[0].ratios.values())
    assert len(result.checks) == 2


def test_other_gradients_are_not_timed(monkeypatch):
    install(monkeypatch, factor=1.01)
    with pytest.raises(CheckFailed, match="differences against the nads package"):
        run(nads.Nads(), QUICK)
