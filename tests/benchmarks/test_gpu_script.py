"""benchmarks/gpu.sh, as far as it goes without a GPU."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
]


def run(folder, *arguments, **variables):
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "none", **variables}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_summary_comes_last(tmp_path):
    done = run(tmp_path, str(tmp_path), DEVICE="cpu", STEPS="memcheck")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "impl=torch: works here" in done.stdout
    summary = done.stdout.split("== summary, after ")[1]
    assert "memcheck               skipped  needs a GPU" in summary
    assert (tmp_path / "gpu.log").read_text() == done.stdout


def test_few_files_where_out_is_set(tmp_path):
    done = run(tmp_path, DEVICE="cpu", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.log", "gpu-results.tar.gz"}
    with tarfile.open(tmp_path / "gpu-results.tar.gz") as packed:
        assert {"results", "logs"} <= set(packed.getnames())


def test_steps_without_time_are_skipped(tmp_path):
    done = run(tmp_path, str(tmp_path), DEVICE="cpu", STEPS="measure", LIMIT="1")
    assert done.returncode == 0, done.stdout + done.stderr
    for entry in ("gpu-overhead", "gpu-kernels", "gpu-job", "gpu-layers"):
        assert f"{entry:<22} skipped  no time was left" in done.stdout


def test_no_gpu_is_an_error(tmp_path):
    done = run(tmp_path, str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "sees no CUDA device" in done.stdout
    assert "machine                FAILED   no usable PyTorch" in done.stdout
