"""The entries for GPUs, on tiny sizes on the CPU: that they run, refuse and go on."""

import dataclasses
import math
import time

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import gpu_cases, gpu_job, gpu_kernels, gpu_layers, gpu_overhead, sanitize, sketches
from benchmarks.cases import reference_rows
from benchmarks.gpu_job import GpuJob
from benchmarks.gpu_kernels import GpuKernels, Way
from benchmarks.gpu_layers import GpuLayers
from benchmarks.gpu_overhead import GpuOverhead, Run
from benchmarks.machine import gpu_ceilings, tf32
from benchmarks.registry import NOT_TIMED, CheckFailed, Options, Unavailable, run
from pntk.projection.dense import DenseSketch
from pntk.projection.hadamard import HadamardSketch

CPU = torch.device("cpu")
QUICK = Options(CPU, repeats=2, quick=True)
ENTRIES = [GpuOverhead, GpuKernels, GpuLayers, GpuJob]
PLAIN = Run(gpu_cases.MLP, "tf32", impl="torch")


@pytest.fixture
def one_model(monkeypatch):
    monkeypatch.setattr(gpu_overhead, "RUNS", [PLAIN])


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_cpu_is_not_measured(entry):
    with pytest.raises(Unavailable, match="use --device cuda"):
        entry().check(Options(CPU))


def test_overhead(monkeypatch):
    runs = [PLAIN, dataclasses.replace(PLAIN, arithmetic="bf16"), Run(gpu_cases.GPT2, "tf32")]
    monkeypatch.setattr(gpu_overhead, "RUNS", runs)
    result = run(GpuOverhead(), QUICK)
    assert not result.failures
    assert all({"R", "R_floor", "backward / GEMM"} <= set(row.ratios) for row in result.rows)
    assert result.rows[1].case == "MLP, bf16, impl=torch"
    assert len(result.checks) == 3


def test_overhead_covers_what_it_should():
    names = {run.case.name for run in gpu_overhead.RUNS}
    assert {"MLP", "ResNet18", "ViT", "ViT-B/16", "GPT-2 small"} <= names
    assert {f"{name}, trace of 10" for name in ("MLP", "ResNet18", "ViT", "ViT-B/16")} <= names
    assert {"auto", "triton", "torch"} == {run.impl for run in gpu_overhead.RUNS}
    assert {"tf32", "bf16"} == {run.arithmetic for run in gpu_overhead.RUNS}
    assert len(set(map(str, gpu_overhead.RUNS))) == len(gpu_overhead.RUNS)


def test_kernels():
    result = run(GpuKernels(), QUICK)
    assert not result.failures
    rows = {row.case: row for row in result.rows}
    for family in ("hadamard, torch", "rademacher, torch, fp32", "normal, torch, fp32"):
        row = rows[f"{family}, p = 960, batch = 8"]
        assert ("of bf16 GEMM" in row.ratios) == ("read / copy" not in row.ratios)
        assert f"{family}, p = 960, batch = 3" not in rows  # slow: at one point only
    gemm = rows[f"{gpu_kernels.GEMM}, p = 960, batch = 3"].ratios
    assert gemm["of bf16 GEMM"] == gemm["of own GEMM"]
    assert any("fast_jl" in note for note in result.notes)
    assert {check.what for check in result.checks} >= {
        "hadamard, torch, 7 gradients of 48 x 80",
        "hadamard, torch, p = 960, batch = 8",
    }


def test_fp32_counts_two_products(monkeypatch):
    entry = GpuKernels()
    entry.check(QUICK)
    monkeypatch.setattr(entry, "ceilings", dict.fromkeys(entry.ceilings, 1.0))
    there = {"a": gpu_kernels.Competitor(lambda: None, lambda: 0.0, 1, 10, "fp32")}
    ratios = entry._row("a", there["a"], entry._times(there, 10, QUICK), (2, 5), 4).ratios
    assert ratios["of own GEMM"] == pytest.approx(2 * ratios["of bf16 GEMM"])


def test_a_wrong_kernel_is_not_timed_and_the_others_are(monkeypatch):
    right = DenseSketch.add_gradient

    def wrong_at_size(self, gradient, out, output=0):
        right(self, gradient * (1.001 if self.size == 960 else 1), out, output)

    monkeypatch.setattr(DenseSketch, "add_gradient", wrong_at_size)
    result = run(GpuKernels(), QUICK)
    assert {failure.split(",")[0] for failure in result.failures} == {"rademacher", "normal"}
    assert all("CheckFailed" in failure for failure in result.failures)
    cases = [row.case for row in result.rows]
    assert any(case.startswith("hadamard") for case in cases)
    assert not any(case.startswith(("rademacher", "normal")) for case in cases)


def test_all_samples_of_a_batch_are_checked():
    """Also those beyond the few that are distinct, whose rows are multiples."""
    entry = GpuKernels()
    entry.check(QUICK)
    gradient = entry._gradients((6, 10), 13, CPU)
    assert len(gradient.flatten(1).unique(dim=0)) == 13
    expected, columns = entry._expected("rademacher", gradient)
    rows, same = sketches.reference_rows("rademacher", entry.k, gradient)
    assert columns == same
    factors = gpu_kernels._factors(13).double()[:, None]
    torch.testing.assert_close(rows, expected * factors, rtol=1e-12, atol=1e-12)


def test_one_wrong_row_of_many_is_found(monkeypatch):
    entry = GpuKernels()
    entry.check(QUICK)
    right = DenseSketch.add_gradient

    def wrong(self, gradient, out, output=0):
        right(self, gradient, out, output)
        out[-1] *= 1.01

    gradient = entry._gradients((6, 10), 256, CPU)
    way = Way("rademacher", "torch")
    assert entry._ours(way, gradient).error() < 1e-5
    monkeypatch.setattr(DenseSketch, "add_gradient", wrong)
    assert entry._ours(way, gradient).error() > 1e-4


def test_layers():
    result = run(GpuLayers(), QUICK)
    rows = {row.case: row for row in result.rows}
    timed = [case for case, row in rows.items() if row.ratios]
    assert timed == ["conv; batch 4; fp32; torch", "linear; batch 4; fp32; torch"]
    assert not result.failures


@pytest.mark.parametrize("layer", gpu_layers.QUICK, ids=lambda layer: layer.name)
def test_a_layer_is_the_gradient_of_its_model(layer):
    delta, x = layer.factors(torch.float64, CPU)
    weight = torch.zeros(layer.shape, dtype=torch.float64, requires_grad=True)
    if layer.kernel:
        y = torch.nn.functional.conv2d(x, weight, padding=layer.kernel // 2)
    else:
        y = torch.nn.functional.linear(x, weight)
    (y * delta).sum().backward()
    torch.testing.assert_close(layer.ordinary(delta, x), weight.grad)
    sketch = sketches.make("hadamard", 64, layer.shape, "torch", torch.float64)
    rows = layer.project(sketch, delta, x, 64).sum(0)
    torch.testing.assert_close(rows, sketches.project(sketch, weight.grad[None], 64)[0])


def test_a_wrong_layer_fails(monkeypatch):
    right = HadamardSketch.prepare_rows
    monkeypatch.setattr(
        HadamardSketch, "prepare_rows",
        lambda self, rows, groups=1: right(
            self, rows * (1.001 if rows.dtype == torch.float32 else 1), groups
        ),
    )  # fmt: skip
    with pytest.raises(CheckFailed):
        GpuLayers().check(QUICK)


def test_job(monkeypatch):
    right, times = gpu_job._store, iter([99.0, 10.0])  # of the warm-up and of the job

    def store(*arguments):
        right(*arguments)
        return next(times)

    monkeypatch.setattr(gpu_job, "JOBS", [(Run(gpu_cases.RESNET, "tf32"), 15.0)])
    monkeypatch.setattr(gpu_job, "_store", store)
    monkeypatch.setattr(gpu_job, "_rows_alone", lambda f, images, batch: len(images) / 5)
    result = run(GpuJob(), QUICK)
    (row,) = result.rows
    assert not result.failures
    assert row.values["images"] == 40
    assert row.ratios["time / target"] == 10 / 15
    assert row.values["without a store [s]"] == 8  # 32 images took 6.4 s
    assert row.ratios["share of the store"] == pytest.approx(0.2)


def test_a_job_whose_rows_are_wrong(monkeypatch):
    monkeypatch.setattr(gpu_job, "JOBS", [(Run(gpu_cases.RESNET, "tf32"), 15.0)])
    monkeypatch.setattr(gpu_job, "_read", lambda path: torch.randn(40, 64))
    result = run(GpuJob(), QUICK)
    assert "stored rows against fp32" in result.failures[0]
    assert not result.rows[0].ratios


def test_rows_that_miss_the_bound_are_compared_with_ordinary_fp32(monkeypatch):
    """A model that is badly conditioned in fp32 is no fault of the projection."""
    loaded = gpu_cases.MLP.load(QUICK)
    asked = []

    def reference(loaded, samples, dtype=torch.float64):
        asked.append(dtype)
        rows = reference_rows(loaded, samples)
        return rows * 1.01 if dtype == torch.float32 else rows

    monkeypatch.setattr(gpu_cases, "reference_rows", reference)
    gpu_cases.check_rows(loaded, "fine")
    assert asked == [torch.float64]
    monkeypatch.setattr(gpu_cases, "BOUND", 1e-12)
    assert gpu_cases.check_rows(loaded, "as good as fp32").bound == pytest.approx(0.03)
    monkeypatch.setattr(gpu_cases, "reference_rows", reference_rows)
    monkeypatch.setattr(gpu_cases, "relative_error", lambda rows, expected: math.nan)
    with pytest.raises(CheckFailed):
        gpu_cases.check_rows(loaded, "wrong")


def test_after_the_deadline_rows_say_so(one_model):
    entry = GpuOverhead()
    options = dataclasses.replace(QUICK, deadline=time.monotonic())
    (row,) = run(entry, options).rows
    assert row.values == {NOT_TIMED: "no time was left"}


def test_a_missing_implementation_is_said(monkeypatch):
    monkeypatch.setattr(gpu_overhead, "RUNS", [PLAIN, Run(gpu_cases.MLP, "tf32", impl="other")])
    result = run(GpuOverhead(), QUICK)
    assert result.rows[1].values == {
        NOT_TIMED: "impl is 'other'; this version has cuda, triton, cpu, torch (or 'auto')"
    }
    assert not result.failures


def test_an_unknown_precision_is_said():
    with pytest.raises(Unavailable, match="has no products in tf32"):
        sketches.make("rademacher", 64, (3, 5), "torch", precision="tf32")


def test_tf32_is_put_back():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for allowed in (True, False):
        with pytest.raises(ZeroDivisionError), tf32(allowed):
            assert [flag.allow_tf32 for flag in flags] == [allowed] * 2
            raise ZeroDivisionError
        assert [flag.allow_tf32 for flag in flags] == before


def test_tf32_is_checked_in_fp32_and_bf16_as_it_is(monkeypatch):
    runs = [PLAIN, dataclasses.replace(PLAIN, arithmetic="bf16")]
    monkeypatch.setattr(gpu_overhead, "RUNS", runs)
    checked = []
    right = gpu_cases.check_rows

    def noted(loaded, what, impl):
        checked.append((what, loaded.autocast, torch.backends.cuda.matmul.allow_tf32))
        return right(loaded, what, impl)

    monkeypatch.setattr(gpu_overhead, "check_rows", noted)
    result = run(GpuOverhead(), QUICK)
    assert checked == [
        ("MLP, fp32, impl=torch", False, False),
        ("MLP, bf16, impl=torch", True, False),
    ]
    first, second = result.checks
    assert first.bound == 1e-4
    assert second.error > 1e-4  # of bfloat16, and not more than is usual
    assert second.bound > 1e-4


def test_ceilings_of_a_gpu_are_of_three_types():
    found = gpu_ceilings(CPU, True)
    assert {"gemm_gflops", "gemm_tf32_gflops", "gemm_bf16_gflops", "copy_gbytes"} == set(found)


def test_ways_have_names_of_their_own():
    names = [str(way) for way in (*gpu_kernels.OURS, *gpu_kernels.SLOW)]
    assert len(set(names)) == len(names)
    assert str(Way("hadamard", "cuda")) == "hadamard, cuda"


def test_what_the_sanitizer_runs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sanitize", "--device", "cpu", "--impl", "torch"])
    assert sanitize.main() == 0
    assert "18 runs of kernels, 0 failed" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["sanitize", "--device", "cpu", "--impl", "cuda"])
    assert sanitize.main() == 77
    monkeypatch.setattr(sanitize, "_lookup", lambda *a: 1.5)
    monkeypatch.setattr("sys.argv", ["sanitize", "--device", "cpu", "--impl", "torch"])
    assert sanitize.main() == 1
    assert "WRONG: torch, look-up" in capsys.readouterr().out
