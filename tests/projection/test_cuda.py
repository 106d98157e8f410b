"""Loading the compiled CUDA kernels, and what their failures say; no kernel runs here."""

import sys
import types

import pytest
import torch

from pntk.errors import ConfigError, KernelError, PntkWarning
from pntk.projection import cuda
from pntk.projection.dispatch import resolve_impl, why_not


@pytest.fixture(autouse=True)
def fresh_loader():
    cuda._load.cache_clear()
    yield
    cuda._load.cache_clear()


@pytest.fixture
def module(monkeypatch):
    """A stand-in for the extension module, on the CPU as the emulator is."""

    def fail(*args):
        raise RuntimeError("bits: an illegal memory access was encountered")

    made = types.SimpleNamespace(device_type="cpu", architectures="80;90a", bits=fail)
    monkeypatch.setattr(cuda, "_load", lambda: (made, None))
    return made


def test_turned_off(monkeypatch):
    monkeypatch.setenv("PNTK_DISABLE_NATIVE", "1")
    assert cuda.cuda_module() is None
    assert cuda.cuda_error() == "turned off by PNTK_DISABLE_NATIVE=1"


def test_not_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "pntk._cuda", None)  # as if the import found nothing
    assert cuda.cuda_module() is None
    assert "was not built: install with the CUDA toolkit's nvcc; PNTK_CUDA=1" in cuda.cuda_error()
    with pytest.raises(ConfigError, match=r"impl='cuda' cannot be used: pntk\._cuda was not built"):
        resolve_impl("cuda", device="cuda")
    with pytest.raises(ConfigError, match=r"impl='cuda' cannot be used: pntk\._cuda was not built"):
        cuda.bits(0, 0, torch.zeros(1, dtype=torch.int32))


@pytest.mark.parametrize("error", [ImportError("libcuda.so.1: not found"), ValueError("odd")])
def test_built_and_broken(monkeypatch, error):
    def broken(name):
        raise error

    monkeypatch.setattr(cuda.importlib, "import_module", broken)
    with pytest.warns(PntkWarning, match=rf"cannot be imported \({error}\); reinstall pntk"):
        assert cuda.cuda_module() is None
    assert "reinstall pntk" in cuda.cuda_error()


def test_built_for_another_version(monkeypatch):
    old = types.SimpleNamespace(device_type="cuda", architectures="80")
    monkeypatch.setattr(cuda.importlib, "import_module", lambda name: old)
    with pytest.warns(PntkWarning, match=r"it was built for another version of pntk\); reinstall"):
        assert cuda.cuda_module() is None


def test_a_failed_launch_is_an_error_with_a_remedy(module):
    with pytest.raises(
        KernelError, match=r"kernel for bits failed on cpu: bits: an illegal.*use impl='triton'"
    ):
        cuda.bits(0, 0, torch.zeros(1, dtype=torch.int32))


def test_tensors_on_another_device(module):
    module.device_type = "cuda"
    with pytest.raises(ConfigError, match="run on a cuda device; the tensors are on cpu"):
        cuda.bits(0, 0, torch.zeros(1, dtype=torch.int32))


def test_only_rademacher_is_dense(module):
    with pytest.raises(ConfigError, match="make rademacher, not normal; impl='triton' does"):
        cuda.dense(torch.zeros(1, 1), "normal", "fp32", 1.0, 0, 0, torch.zeros(1, 1, 1))


def test_hopper_instructions_need_a_build_and_a_device_of_their_own(module, monkeypatch):
    assert cuda.has_wgmma(torch.device("cpu"))  # emulated
    module.device_type = "cuda"
    for capability, architectures, expected in (
        ((9, 0), "80;90a", True),
        ((9, 0), "80;90-virtual", False),
        ((8, 6), "80;90a", False),
        ((10, 0), "80;90a", False),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d, c=capability: c)
        module.architectures = architectures
        assert cuda.has_wgmma(torch.device("cuda")) is expected


@pytest.mark.parametrize(
    ("impl", "given", "reason"),
    [
        ("cuda", {"device": "cpu", "family": "normal"}, "impl='triton' makes normal"),
        ("cuda", {"proj_dim": 2**17}, "proj_dim is 131072, and the GPU kernels have up to 65536"),
        ("cuda", {"dtype": torch.float64}, "sum in float32, and rows here are torch.float64"),
        ("cuda", {"family": "identity"}, "the identity projects nothing"),
        ("cuda", {"device": "meta"}, "run on a CUDA device, and the model is on meta"),
        ("triton", {"device": "cpu"}, "run on a CUDA device, and the model is on cpu"),
    ],
)
def test_why_not(module, monkeypatch, impl, given, reason):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = why_not(impl, given.pop("family", "hadamard"), **given)
    assert reason in found


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("80", (8, 0), True),
        ("80", (8, 9), True),
        ("86", (8, 0), False),
        ("80;90a", (9, 0), True),
        ("90a", (8, 0), False),
        ("90a", (10, 0), False),
        ("80;90a", (10, 0), False),
        ("80;90-virtual", (12, 0), True),
        ("90a-virtual", (10, 0), False),
    ],
)
def test_code_runs_on_what_it_was_built_for(module, monkeypatch, architectures, capability, runs):
    module.architectures, module.versions = architectures, lambda: (13000, 13000)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = cuda.why_not_on(torch.device("cuda", 0))
    number = "".join(map(str, capability))
    wanted = (
        f"pntk._cuda was built for {architectures}, and cuda:0 is {number}: build with "
        f"PNTK_CUDA_ARCHS={number}"
    )
    assert found == (None if runs else wanted)


def test_a_driver_that_is_too_old(module, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    module.versions = lambda: (13000, 13020)
    assert cuda.why_not_on(torch.device("cuda")) is None
    module.versions = lambda: (12040, 13000)
    found = cuda.why_not_on(torch.device("cuda"))
    assert found.startswith(
        "the driver serves CUDA 12.4, and pntk._cuda was built with 13.0: update"
    )


def test_why_not_on_other_gpus(module, monkeypatch):
    module.device_type = "cuda"
    assert why_not("cuda", device="cuda:0") == "PyTorch can use no CUDA device here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    reason = "Tesla T4 has compute capability 7.5; the kernels need 8.0"
    assert why_not("cuda", device="cuda:0") == reason
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "are for NVIDIA GPUs" in why_not("cuda", device="cuda:0")


def test_without_triton(monkeypatch):
    from pntk.projection import dispatch

    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in why_not("triton", device="cuda")
