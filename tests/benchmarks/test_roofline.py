"""The roofline's numbers, by hand."""

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import gpu_cases, roofline
from benchmarks.roofline import Ceilings, Layer, dense, project
from pntk.models import ResNet18

ONES = Ceilings("ones", 1.0, 1.0, 1.0, 1.0)
# a quarter of the vendor's bf16 rate and so on: nobody's GPU
OTHER = Ceilings("other", 100e12, 50e12, 1e12, 10e12)


def test_a_linear_layer():
    """64 x 128 weights at k = 4096: one row block, two column blocks; T = 10, b = 3."""
    layer = Layer(64, 128, 1, 10, 10)
    parts = project(layer, 3, ONES, precision="bf16", k=4096)
    numbers = 3 * (64 + 128) * 10
    assert parts.mix == numbers * (2 + 2 + 2)  # read, written, read again
    assert parts.products == 2 * 3 * 10 * 64 * 128
    assert parts.signed_add == 3 * 3 * 64 * 128
    assert parts.sign_bits == 64 * 128 * 80 / 128
    fp32 = project(layer, 3, ONES, precision="fp32", k=4096)
    assert fp32.mix == numbers * (4 + 4 + 4)
    assert fp32.products == 3 * parts.products


def test_a_convolution_reads_each_pixel_once():
    layer = Layer(64, 64, 9, 25, 49)
    parts = project(layer, 2, ONES, precision="bf16", k=4096)
    assert parts.mix == 2 * (64 * 25 + 64 * 49) * 6
    assert parts.products == 2 * 2 * 25 * 64 * 64 * 9


def test_few_channels_are_laid_out_as_columns():
    """3 channels of 9 positions stand together: 27 columns in a block of 64."""
    parts = project(Layer(64, 3, 9, 25, 49), 2, ONES, precision="bf16", k=4096)
    assert parts.mix == 2 * (64 * 25 + 27 * 25) * 6


def test_sum_and_overlap():
    parts = roofline.Parts(1.0, 2.0, 4.0, 0.5)
    assert (parts.alone, parts.overlapped) == (7.5, 5.0)
    assert parts + parts == roofline.Parts(2.0, 4.0, 8.0, 1.0)


def test_dense():
    found = dense(1000, 4, ONES, k=512, products=2)
    assert found["gradients"] == 16000
    assert found["products"] == 2 * 4 * 1000 * 512 * 2
    assert found["signs"] == (80 / 128 + 1) * 1000 * 512
    assert found["P in memory"] == 2 * 1000 * 512
    assert dense(1000, 129, ONES, k=512)["signs"] == 2 * found["signs"]


def test_balances():
    found = roofline.balances(Ceilings("a", bf16=8.0, tf32=1.0, memory=2.0, lanes=1.0))
    assert found == {"positions": 3 * 4, "signs": (80 / 128 + 1) * 4, "memory": 4}


def test_the_documentation_holds_what_is_computed_and_measured():
    root = Path(__file__).parents[2]
    text = (root / "docs" / "performance.md").read_text()
    assert roofline.markdown(roofline.H200) in text
    for name in ("overhead", "kernels", "memory"):
        (result,) = (root / "benchmarks" / "results").glob(f"2026-11-21-cpu-{name}.md")
        lines = result.read_text().split("## Ratios")[1].split("## Absolute")[0].splitlines()
        assert all(line in text for line in lines if line.startswith("| ")), result


def test_layers_are_those_of_the_model():
    layers = roofline.layers(gpu_cases.RESNET)
    weights = sum(p.numel() for p in ResNet18().parameters() if p.dim() > 1)
    assert sum(layer.size for layer in layers) == weights
    first = Layer(64, 3, 9, 1024, 1024)
    assert layers[0] == first
    strided = [layer for layer in layers if layer.inputs != layer.outputs]
    assert {layer.inputs / layer.outputs for layer in strided} == {4}


def test_tables_scale_with_the_ceilings():
    text = roofline.markdown(OTHER)
    assert "Computed, not measured; other: bf16 100 TFLOP/s" in text
    line = next(line for line in text.splitlines() if line.startswith("| GPT-2 small | 8 | bf16"))
    cells = [float(cell) for cell in line.strip("| ").split(" | ")[3:]]
    layers = roofline.layers(gpu_cases.GPT2)
    flops = sum(6 * 8 * layer.outputs * layer.size for layer in layers)
    assert cells[0] == pytest.approx(flops / 100e12 * 1e3, rel=1e-2)
    assert cells[5] == pytest.approx(sum(cells[1:5]), rel=1e-2)
    shares = [line.split(" | ")[-2:] for line in text.splitlines() if line.startswith("| 64 |")]
    overlapped, after = (float(cell.strip(" |")) for cell in shares[0])
    assert 0 < after < overlapped <= 1


def test_measured_ceilings_from_a_result(tmp_path, capsys, monkeypatch):
    path = tmp_path / "result.json"
    record = {
        "machine": {"device": "Some GPU", "date": "2026-01-02T03:04:05"},
        "ceilings": {"gemm_bf16_gflops": 5e5, "gemm_tf32_gflops": 2e5, "copy_gbytes": 2e3},
    }
    path.write_text(json.dumps(record))
    monkeypatch.setattr("sys.argv", ["roofline", str(path)])
    roofline.main()
    out = capsys.readouterr().out
    assert "measured 2026-01-02: bf16 500 TFLOP/s, TF32 200 TFLOP/s, memory 2.00 TB/s" in out
    found = roofline.from_result(path)
    assert found.name == "Some GPU, measured 2026-01-02"
    assert math.isclose(found.memory, 2e12)
    path.write_text(json.dumps({**record, "ceilings": {"gemm_gflops": 1.0}}))
    with pytest.raises(ValueError, match="no ceilings of a GPU"):
        roofline.from_result(path)
