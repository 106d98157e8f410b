import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from pntk.cli import info
from pntk.errors import KernelError
from pntk.projection import bits, dispatch
from pntk.projection.dispatch import IMPLEMENTATIONS
from pntk.store import FeatureStore, RowWriter

needs_native = pytest.mark.skipif(not bits.has_native(), reason=str(bits.native_error()))


def test_environment(invoke):
    found = json.loads(invoke("info", "--json").stdout)
    assert set(found["versions"]) == {"pntk", "python", "torch", "numpy", "h5py"}
    assert found["cpu"]["threads"] >= 1
    assert set(found["implementations"]) == set(IMPLEMENTATIONS)
    assert found["implementations"]["torch"] is None
    assert found["extras"]["cli"] == []


def test_environment_for_people(invoke, monkeypatch):
    monkeypatch.setitem(info.EXTRAS, "search", ("no_such_module",))
    monkeypatch.setattr(info.bits, "native_module", lambda: None)
    monkeypatch.setattr(info.bits, "native_error", lambda: "switched off")
    shown = invoke("info").stdout
    assert 'lacks no_such_module: pip install "pntk[search]"' in shown
    assert "not usable: switched off" in shown
    assert "none (switched off)" in shown
    assert "CPU" in shown


def test_cuda_kernels(invoke, monkeypatch):
    built = types.SimpleNamespace(architectures="80;90a;90-virtual", device_type="cuda")
    monkeypatch.setattr(info.cuda, "_load", lambda: (built, None))
    found = json.loads(invoke("info", "--json").stdout)
    assert found["cuda_kernels"] == {"architectures": ["80", "90a", "90-virtual"], "reason": None}
    shown = " ".join(invoke("info").stdout.split())
    assert "CUDA kernels sm_80, sm_90a, sm_90 and later (PTX)" in shown
    monkeypatch.setattr(info.cuda, "_load", lambda: (None, "pntk._cuda was not built"))
    shown = " ".join(invoke("info").stdout.split())
    assert "CUDA kernels none (pntk._cuda was not built)" in shown
    assert "impl cuda not usable: pntk._cuda was not built" in shown


def test_gpus_are_shown_with_their_architecture(monkeypatch):
    monkeypatch.setattr(info.torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(info.torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    assert info._gpu(0) == "NVIDIA H200 (sm_90)"


@needs_native
def test_wrong_kernels_are_not_usable(invoke, monkeypatch):
    def wrong(impl, device):
        raise KernelError("the compiled kernel for products is wrong on this machine")

    monkeypatch.setattr(dispatch, "check_kernels", wrong)
    assert "not usable: the compiled kernel for products is wrong" in " ".join(
        invoke("info").stdout.split()
    )


@needs_native
def test_unknown_level(toy):
    asked = {**os.environ, "PNTK_CPU_LEVEL": "avx9"}
    done = subprocess.run(
        [sys.executable, "-m", "pntk", "info"], env=asked, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "PNTK_CPU_LEVEL is 'avx9'; set it to one of portable" in done.stderr
    assert "Traceback" not in done.stderr


def test_cpu_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "Path", lambda _: tmp_path / "absent")
    assert info._cpu_name()


def test_store(invoke, stores):
    found = json.loads(invoke("info", "train.h5", "--json").stdout)
    assert (found["rows"], found["done"], found["missing"], found["skipped"]) == (20, 20, 0, [])
    assert found["labels"] == {"0": 7, "1": 7, "2": 6}
    assert found["bytes"] == (stores / "train.h5").stat().st_size
    assert found["params"]["1.weight"] == [8, 12]
    assert found["info"]["model"] == "Sequential"
    shown = invoke("info", "train.h5").stdout
    assert "20: 20 done, 0 missing, 0 skipped" in shown
    assert "3 classes; 0: 7, 1: 7, 2: 6" in shown
    assert "131 in 4: 1.weight, 1.bias, 3.weight, 3.bias" in shown


def test_store_that_is_not_complete(invoke, stores):
    header = FeatureStore("train.h5").header
    with RowWriter.open("part.h5", header) as writer:
        columns = {"labels": np.array([-1, 2])}
        writer.write([0, 1], np.ones((2, 64), np.float32), columns, np.array([True, False]))
    found = json.loads(invoke("info", "part.h5", "--json").stdout)
    assert (found["done"], found["missing"], found["skipped"]) == (1, 18, [0])
    assert found["labels"] == {"2": 1}


def test_errors(refused, invoke, toy):
    assert "does not exist" in invoke("info", "absent.h5", code=2).stderr
    (toy / "bad.h5").write_text("no store")
    assert "bad.h5" in refused("info", "bad.h5", code=1)
