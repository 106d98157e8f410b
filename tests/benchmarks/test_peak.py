"""The peaks of one core."""

import shutil

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks import machine, peak
from benchmarks.peak import core_peaks
from benchmarks.registry import Unavailable
from pntk.projection import bits

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget():
    core_peaks.cache_clear()
    yield
    core_peaks.cache_clear()


@pytest.mark.skipif(not any(map(shutil.which, peak.COMPILERS)), reason="needs a C++ compiler")
def test_peaks_are_among_the_ceilings(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    found = machine.ceilings(CPU, quick=True)
    assert {"core_fma_gflops", "core_read_gbytes", "core_triad_gbytes"} <= set(found)
    assert all(value > 0.1 for value in found.values())


def test_a_missing_compiler_is_said(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        core_peaks(True)
    assert set(machine.ceilings(CPU, quick=True)) == {"gemm_gflops", "copy_gbytes"}
    assert "no-such-compiler" in capsys.readouterr().err


def test_a_failing_compiler_is_said(monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no such option >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(Unavailable, match="broken failed: no such option"):
        core_peaks(True)


def test_the_level_is_described(monkeypatch):
    native = bits.native_module()
    assert machine.describe(CPU)["cpu_level"] == (native.level() if native else "none")
    monkeypatch.setattr(bits, "native_module", lambda: None)
    assert machine.describe(CPU)["cpu_level"] == "none"
