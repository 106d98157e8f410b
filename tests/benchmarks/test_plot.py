"""Plots of results: real images, and clear errors."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import plot, report
from benchmarks.kernels import GEMM
from benchmarks.registry import Check, Result, Row
from benchmarks.timing import Spread

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc123",
    "device": "cpu",
    "cpu": "Some CPU",
    "cpu_level": "avx9",
    "cores": 4,
    "threads": 2,
    "memory_gib": 8.0,
    "torch": "2.9",
    "pntk": "0.1",
}
CEILINGS = {"gemm_gflops": 123.4, "copy_gbytes": 12.34}
ONE = Spread(1.0, 1.0, 1.0)
ROWS = {
    "overhead": [
        Row("MLP", {"R": Spread(1.5, 1.4, 1.7), "R_floor": ONE}, {}),
        Row("GPT", {"R": Spread(0.9, 0.8, 1.1), "R_floor": ONE}, {}),
    ],
    "kernels": [
        Row("ours", {"TRAK / this": Spread(1234.0, 1e3, 2e3), f"this / {GEMM}": ONE}, {}),
        Row("slow", {"TRAK / this": Spread(0.1, 0.05, 0.2), f"this / {GEMM}": 7.0}, {}),
    ],
    "gpu-overhead": [
        Row("ResNet18, model in tf32, impl=auto", {"R": Spread(1.2, 1.1, 1.3), "R_floor": ONE}, {}),
        Row("ViT, model in tf32, impl=triton", {}, {"not timed": "no Triton"}),
    ],
    "gpu-kernels": [
        Row(f"{way}, p = {p}, batch = {batch}", {ratio: share * batch / (batch + 50)}, {})
        for way, ratio, share in [
            ("rademacher, cuda, bf16", "of bf16 GEMM", 0.9),
            ("rademacher, triton, fp32", "of bf16 GEMM", 0.4),
            ("hadamard, cuda", "read / copy", 0.7),
        ]
        for p, batch in [(1000, 8), (1000, 256), (1000, 64), (2000, 64)]
    ],
    "gpu-layers": [
        Row("3x3; fp32; cuda", {"projection / weight gradient": Spread(1.4, 1.3, 1.5)}, {}),
        Row("3x3; fp32; triton", {}, {"not timed": "no Triton"}),
    ],
    "gpu-job": [Row("ResNet18", {"time / target": 0.6, "share of the store": 0.1}, {})],
    "scaling": [
        Row("hadamard, p = 100000", {"time / base": Spread(0.2, 0.1, 0.3)}, {}),
        Row("hadamard, p = 1000000", {"time / base": ONE}, {}),
        Row("MLP, k = 512", {"time / base": 0.5, "R": Spread(2.0, 1.5, 2.5)}, {}),
        Row("MLP, k = 4096", {"time / base": ONE, "R": 1.5}, {}),
    ],
}


def written(name: str, rows: list[Row], folder: Path) -> Path:
    result = Result(name, "A summary.", [Check("what", 0.0, 1.0)], rows)
    return report.write(result, MACHINE, CEILINGS, folder)[0]


@pytest.mark.parametrize("name", ROWS)
def test_an_image_beside_the_result(name, tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image")
    path = written(name, ROWS[name], tmp_path)
    assert plot.main([str(path)]) == 0
    made = path.with_suffix(".png")
    assert capsys.readouterr().out == f"wrote {made}\n"
    pixels = image.imread(made)
    assert min(pixels.shape[:2]) > 300
    assert len({tuple(pixel) for pixel in pixels[::5, ::5, :3].reshape(-1, 3)}) > 3


def test_kernels_without_trak_and_overhead_without_floor(tmp_path):
    pytest.importorskip("matplotlib")
    kernels = [Row("ours", {f"this / {GEMM}": 0.5}, {})]
    overhead = [Row("MLP", {"R": 2.0}, {})]
    paths = [written("kernels", kernels, tmp_path), written("overhead", overhead, tmp_path)]
    assert plot.main([str(path) for path in paths]) == 0


def test_the_title_names_hardware_date_and_commit():
    record = {"name": "overhead", "machine": MACHINE, "quick": True}
    assert plot.title(record) == (
        "overhead   QUICK RUN: THE NUMBERS MEAN NOTHING\n"
        "Some CPU, 2 of 4 cores, kernels avx9; torch 2.9; 2026-01-02, abc123"
    )
    assert "Some CPU, 1 of 4 cores" in plot.title({**record, "name": "kernels"})


def test_results_without_a_plot(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    path = written("memory", [], tmp_path)
    assert plot.main([str(path)]) == 1
    assert "memory; plots are of overhead, kernels, scaling" in capsys.readouterr().err
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    assert plot.main([]) == 0  # which draws what it can
    assert not list(tmp_path.glob("*.png"))


def test_a_case_that_is_no_point(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = written("scaling", [Row("nonsense", {"R": 1.0}, {})], tmp_path)
    assert plot.main([str(path)]) == 1
    assert "case 'nonsense' is not a point of scaling: run it again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpu-overhead", "gpu-kernels", "gpu-job"])
def test_nothing_timed_is_said_and_the_others_are_drawn(name, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    untimed = written(name, [Row("ours", {}, {"not timed": "no GPU"})], tmp_path)
    timed = written("overhead", ROWS["overhead"], tmp_path)
    assert plot.main([str(untimed), str(timed)]) == 1
    assert "nothing was timed" in capsys.readouterr().err
    assert timed.with_suffix(".png").exists()


def test_missing_matplotlib_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.main([str(written("overhead", ROWS["overhead"], tmp_path))]) == 1
    assert "a plot needs matplotlib, which is not installed" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))
