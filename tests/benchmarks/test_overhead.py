"""What the overhead entry puts beside R."""

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks.cases import CASES
from benchmarks.overhead import Overhead
from benchmarks.registry import Options

QUICK = Options(torch.device("cpu"), repeats=1, quick=True)


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("MLP", [(4, 32)]),
        ("LeNet, trace of 10", [(4, 6, 8, 8)]),
        ("ResNet18", [(4, 8, 8, 8)]),
        ("ViT", [(4, 12, 2, 2), (1, 4, 12)]),  # patches and positions
        ("GPT", [(4, 16, 16), (1, 16, 16)]),
    ],
)
def test_the_floor_reaches_the_first_layers_and_no_parameter(name, reached, monkeypatch):
    case = next(case for case in CASES if case.name == name)
    loaded = case.load(QUICK)
    asked = []
    grad = torch.autograd.grad

    def recorded(value, inputs, **options):
        asked.append([tuple(x.shape) for x in inputs])
        return grad(value, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    floor = loaded.floor()
    floor()
    floor()
    assert asked == [reached] * 2 * case.outputs
    assert all(p.requires_grad and p.grad is None for p in loaded.model.parameters())


def test_columns(monkeypatch):
    monkeypatch.setattr("benchmarks.overhead.cases", lambda options: CASES[:1])
    (row,) = Overhead().measure(QUICK)
    assert {"R", "R_floor"} <= set(row.ratios)
    assert {"floor [ms]", "impl"} <= set(row.values)


def test_full_has_a_trace_of_each_image_model():
    from benchmarks.cases import cases

    names = [case.name for case in cases(Options(torch.device("cpu"), full=True))]
    assert {f"{m}, trace of 10" for m in ("MLP", "LeNet", "ResNet18", "ViT")} <= set(names)
