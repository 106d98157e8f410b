"""The kernels entry, on tiny gradients."""

import sys
import types

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import kernels, sketches
from benchmarks.kernels import GEMM, GEMM_BF16, TRAK, Kernels
from benchmarks.registry import CheckFailed, Options, Unavailable, run
from benchmarks.timing import Spread, Times
from pntk import ProjectionSpec
from pntk.projection import bits
from pntk.projection.dense import DenseSketch
from pntk.projection.reference import projection_matrix

QUICK = Options(torch.device("cpu"), repeats=2, quick=True)


class Projector:
    """What the entry uses of TRAK's projector: blocks of columns, each from its own state."""

    factor = 1.0

    def __init__(self, size, k, seed, kind, device):
        assert kind == "rademacher"
        self.size, self.k = size, k
        self.generator_states = range(-(-k // 100))

    def generate_sketch_matrix(self, state):
        generator = torch.Generator().manual_seed(state)
        signs = torch.randint(0, 2, (self.size, min(100, self.k)), generator=generator)
        self.proj_matrix = 2.0 * signs - 1

    def project(self, gradients, model_id):
        blocks = []
        for state in self.generator_states:
            self.generate_sketch_matrix(state)
            blocks.append(gradients @ self.proj_matrix)
        return self.factor * torch.cat(blocks, dim=1)[:, : self.k]


@pytest.fixture
def trak(monkeypatch):
    module = types.ModuleType("trak.projectors")
    module.BasicProjector = Projector
    monkeypatch.setitem(sys.modules, "trak", types.ModuleType("trak"))
    monkeypatch.setitem(sys.modules, "trak.projectors", module)


@pytest.mark.parametrize("family", sketches.DENSE)
@pytest.mark.parametrize("k", [8, 64, 70])
def test_reference_columns_are_those_of_the_matrix(family, k):
    gradient = torch.randn(2, 7, 9)
    rows, columns = sketches.reference_rows(family, k, gradient)
    matrix = projection_matrix(ProjectionSpec(family, k), sketches.NAME, (7, 9))
    expected = gradient.flatten(1).double() @ torch.from_numpy(matrix[columns]).T
    assert {0, k - 1} <= set(columns)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


def test_rows(trak):
    result = run(Kernels(), QUICK)
    rows = {row.case: row for row in result.rows}
    named = {"hadamard, impl=torch", "rademacher, pure torch", "normal, pure torch"}
    assert named | {TRAK, GEMM, GEMM_BF16} <= set(rows)
    assert ("hadamard, impl=cpu" in rows) == bits.has_native()
    assert len(result.checks) == len(rows)
    assert rows[TRAK].ratios["TRAK / this"] == Spread(1, 1, 1)
    assert rows[GEMM].ratios[f"this / {GEMM}"] == Spread(1, 1, 1)
    assert rows[GEMM].values["p measured"] == 125  # of 2000
    assert "Measured on a part of the parameters" in " ".join(result.notes)


def test_times_are_of_one_call_on_all_parameters(monkeypatch):
    """However often it was called, and on whichever part."""
    entry = Kernels()
    entry.shape = (40, 50)
    make = kernels.Competitor
    entry.competitors = {
        name: make(lambda: None, lambda: 0.0, size, 0)
        for name, size in {"whole": 2000, "part": 125, TRAK: 2000}.items()
    }
    calls = iter([3, 2])
    monkeypatch.setattr(kernels, "calls_in", lambda call, seconds: next(calls))
    measured = Times({"whole": [0.3], "part": [0.1], TRAK: [5.0]})
    monkeypatch.setattr(kernels, "interleaved", lambda turns, rounds, warmup: measured)
    times = entry._times(1, 0.3)
    assert {n: times.of(n).median for n in measured.seconds} == pytest.approx(
        {"whole": 0.1, "part": 0.8, TRAK: 5.0}
    )


def test_the_threads_are_given_back(trak, monkeypatch):
    used = []
    project = sketches.project
    monkeypatch.setattr(
        sketches, "project", lambda *a: used.append(torch.get_num_threads()) or project(*a)
    )
    torch.set_num_threads(2)
    try:
        run(Kernels(), QUICK)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(used) == {1}


def test_without_trak_its_row_and_ratio_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "trak", None)
    monkeypatch.delitem(sys.modules, "trak.projectors", raising=False)
    result = run(Kernels(), QUICK)
    assert TRAK not in {row.case for row in result.rows}
    assert not any("TRAK / this" in row.ratios for row in result.rows)
    assert any(note.startswith("Left out: TRAK") for note in result.notes)


def test_without_peaks_their_columns_are_missing(trak, monkeypatch):
    def no_compiler(quick):
        raise Unavailable("no C++ compiler")

    monkeypatch.setattr(kernels, "core_peaks", no_compiler)
    result = run(Kernels(), QUICK)
    assert not any(name.startswith("%") for row in result.rows for name in row.ratios)
    assert "no C++ compiler" in result.notes


def test_a_wrong_sketch_leaves_nothing_timed(trak, monkeypatch):
    right = DenseSketch.add_gradient

    def wrong(self, gradient, out, output=0):
        right(self, gradient * 1.001, out, output)

    monkeypatch.setattr(DenseSketch, "add_gradient", wrong)
    _is_refused("rademacher, pure torch against float64", monkeypatch)


def test_a_wrong_competitor_leaves_nothing_timed(trak, monkeypatch):
    monkeypatch.setattr(Projector, "factor", 1.001)
    _is_refused(TRAK, monkeypatch)


def _is_refused(what, monkeypatch):
    monkeypatch.setattr(kernels, "interleaved", lambda *a, **k: pytest.fail("timed"))
    with pytest.raises(CheckFailed, match=what):
        run(Kernels(), QUICK)


def test_pure_torch_uses_no_compiled_bits():
    with kernels._no_native():
        assert not bits.has_native()


def test_only_on_the_cpu():
    with pytest.raises(Unavailable, match="use --device cpu"):
        Kernels().check(Options(torch.device("cuda"), quick=True))
