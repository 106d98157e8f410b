"""The scaling entry, on tiny gradients and models."""

import math

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import scaling
from benchmarks.registry import CheckFailed, Options, Unavailable, require, run
from benchmarks.scaling import Point, Scaling, Subject
from benchmarks.timing import Spread
from pntk import Featurizer
from pntk.projection import bits

QUICK = Options(torch.device("cpu"), repeats=1, quick=True)


class Fake(Subject):
    """Rows that are as far from those of one thread as it is told."""

    bound = 1e-3

    def __init__(self, error=0.0):
        super().__init__("fake", Point(3, 100, 8, 2), {"batch": (1, 2)}, QUICK)
        self.error = error

    def check_base(self):
        return require("fake", 0.0, 1.0)

    def rows(self, point):
        error = self.error if point.batch == 2 else 0.0
        return lambda: torch.ones(point.batch, 8) + error * (torch.get_num_threads() - 1)


def test_a_line_varies_one_factor():
    lines = Fake().lines
    assert [p.threads for p in lines["threads"]] == [1, 2, 3]
    assert lines["batch"] == [Point(3, 100, 8, 1), Point(3, 100, 8, 2)]


@pytest.mark.parametrize("error", [1e-2, math.nan, math.inf])
def test_rows_that_depend_on_threads_are_refused(error):
    Fake(1e-5).check_line("batch")
    with pytest.raises(CheckFailed, match="fake: finite, and as with one thread, along batch"):
        Fake(error).check_line("batch")
    assert torch.get_num_threads() == 1


def test_rows():
    result = run(Scaling(), QUICK)
    rows = {row.case: row for row in result.rows}
    assert ("hadamard, k = 16" in rows) == bits.has_native()
    base = rows["ResNet18, threads = 1"]
    assert base.ratios["time / base"] == Spread(1, 1, 1)
    assert "R" in base.ratios
    assert rows["MLP, threads = 1"].values["threads"] == 1
    assert {"MLP, batch = 1", "MLP, batch = 4", "MLP, k = 64"} <= set(rows)
    assert "Base point of MLP: threads = 1, k = 64, batch = 4." in result.notes


def test_wrong_rows_leave_nothing_timed(monkeypatch):
    right = Featurizer.__call__
    monkeypatch.setattr(Featurizer, "__call__", lambda self, batch: right(self, batch) * 1.001)
    monkeypatch.setattr(scaling, "interleaved", lambda *a, **k: pytest.fail("timed"))
    with pytest.raises(CheckFailed, match="MLP: rows against float64 autograd"):
        run(Scaling(), QUICK)


def test_only_on_the_cpu():
    with pytest.raises(Unavailable, match="use --device cpu"):
        Scaling().check(Options(torch.device("cuda"), quick=True))
