import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pntk import FeatureStore, Featurizer
from pntk.errors import ConfigError, OutOfMemoryError, PntkError, is_out_of_memory
from pntk.memory import batch_that_fits, out_of_memory, parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, None),
        (1, 1),
        (123456, 123456),
        (2.5e9, 2_500_000_000),
        ("100", 100),
        ("100b", 100),
        ("500MB", 500_000_000),
        (" 1.5 kb ", 1500),
        ("2GiB", 2 * 2**30),
        ("1KIB", 1024),
        ("3 mib", 3 * 2**20),
        ("4GB", 4_000_000_000),
    ],
)
def test_sizes(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize(
    "size", [0, -1, "", "GB", "2TBB", "1.2.3", "-5MB", True, False, "0.1", "1e3x"]
)
def test_sizes_that_are_refused(size):
    with pytest.raises(ConfigError, match="expected bytes, or a text such as '500MB' or '2GiB'"):
        parse_bytes(size)


def plan(sample_bytes, outputs):
    return SimpleNamespace(sample_bytes=sample_bytes, outputs=outputs)


def projector(width, impl="torch"):
    return SimpleNamespace(width=width, dtype=torch.float32, impl=impl)


def test_without_a_budget_the_batch_is_whole():
    assert batch_that_fits(plan(10**9, 1), projector(4096), 1000, None) == 1000


@given(
    sample=st.integers(0, 1000),
    outputs=st.integers(1, 3),
    width=st.integers(1, 100),
    count=st.integers(1, 50),
    budget=st.integers(1, 100_000),
    impl=st.sampled_from(["cpu", "torch"]),
)
def test_as_many_as_fit(sample, outputs, width, count, budget, impl):
    kept = 2 if outputs > 1 and impl == "torch" else 1  # torch keeps transformed inputs
    each = sample * kept + 4 * width
    if budget // 2 < each:
        with pytest.raises(ConfigError, match=r"one sample takes about .*expected room for one"):
            batch_that_fits(plan(sample, outputs), projector(width, impl), count, budget)
        return
    step = batch_that_fits(plan(sample, outputs), projector(width, impl), count, budget)
    assert 1 <= step <= count
    assert step * each <= budget // 2  # the other half is for temporaries and sign tables
    assert step == count or (step + 1) * each > budget // 2


def test_a_budget_for_less_than_one_sample():
    featurizer = Featurizer(nn.Linear(5, 3), proj_dim=64, memory_budget=100)
    with pytest.raises(ConfigError, match="memory_budget is 100 bytes and one sample takes about"):
        featurizer(torch.randn(2, 5))


def test_wider_models_take_more_samples_apart():
    def bytes_of(width):
        model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))
        featurizer = Featurizer(model, proj_dim=64)
        featurizer(torch.randn(2, 5))
        return featurizer._plan.sample_bytes

    assert bytes_of(400) > 5 * bytes_of(40) > 0


PEAK = """
import re, torch, pntk
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
wide = [layer for _ in range(6) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.Tanh())]
model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *wide, nn.Flatten(), nn.Linear(16 * 576, 2))
featurizer = pntk.Featurizer(model, proj_dim=64, memory_budget={budget!r})
rows = featurizer(torch.randn(160, 1, 24, 24))
# of this process alone, where ru_maxrss includes what its parent had at the fork
peak = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]
print(float(rows.sum()), int(peak) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_a_budget_lowers_the_peak():
    def run(budget):
        code = PEAK.format(budget=budget)
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return map(float, found.stdout.split())

    whole_sum, whole_peak = run(None)
    small_sum, small_peak = run("30MB")
    assert small_sum == pytest.approx(whole_sum, rel=1e-3)
    assert small_peak < whole_peak - 50e6


# ---- when memory runs out -----------------------------------------------------------------------

N = 20
X = torch.randn(N, 5)


def net():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


class Room:
    """An output for which memory runs out with more than some samples at a time."""

    def __init__(self, samples, error=None):
        self.samples, self.calls = samples, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def __call__(self, model, batch):
        self.calls += 1
        if len(batch) > self.samples:
            raise self.error
        return model(batch).sum(1)


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 1 GB)",
    ],
)
def test_ways_of_torch_to_say_it(said):
    assert is_out_of_memory(RuntimeError(said)) and is_out_of_memory(torch.OutOfMemoryError(""))
    assert not is_out_of_memory(ValueError(said)) and not is_out_of_memory(RuntimeError("shape"))


def test_a_cpu_says_it():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


def test_a_batch_that_is_too_large_is_told_what_would_fit():
    featurizer = Featurizer(net(), Room(8), proj_dim=64)
    message = (
        "a batch of 20 takes more memory than cpu has; about 10 fit by estimate: use "
        r"batch_size=10, or memory_budget=(\d+), which cuts batches \(rows in a store are kept\)"
    )
    with pytest.raises(OutOfMemoryError, match=message) as caught:
        featurizer(X)
    assert isinstance(caught.value, PntkError) and isinstance(caught.value, MemoryError)
    assert caught.value.__context__ is None  # which would hold the tensors of the failed pass
    budget = int(str(caught.value).split("memory_budget=")[1].split(",")[0])
    cut = Featurizer(net(), Room(10), proj_dim=64, memory_budget=budget)
    assert cut(X).shape == (N, 64)
    assert batch_that_fits(cut._plan, cut._ready, N, budget) == 10


def test_of_a_batch_that_is_cut_the_piece_is_told():
    featurizer = Featurizer(net(), Room(8), proj_dim=64)
    featurizer(X[:4])
    featurizer.memory_budget = 2 * 12 * (featurizer._plan.sample_bytes + 64 * 4)
    with pytest.raises(OutOfMemoryError, match=r"a batch of 12 takes .* about 6 fit"):
        featurizer(X)


def test_one_sample_that_is_too_large():
    featurizer = Featurizer(net(), Room(8), proj_dim=64)
    featurizer(X[:4])
    featurizer._output.function.samples = 0
    message = r"one sample alone takes more memory than cpu has left; .* fewer parameters with"
    with pytest.raises(OutOfMemoryError, match=message):
        featurizer(X[:1])


@pytest.mark.parametrize("samples", [1, 2])
def test_no_room_for_the_first_look_at_the_model(tmp_path, samples):
    message = "a batch of 2 takes more memory than cpu has; about 1 fit by estimate: use batch_size"
    with pytest.raises(OutOfMemoryError, match=message):
        Featurizer(net(), Room(samples)).featurize(X, tmp_path / "a.h5", progress=False)
    with pytest.raises(OutOfMemoryError, match="a batch of 20"):
        Featurizer(net(), Room(samples))(X)


def test_no_room_for_a_check_that_was_asked_for():
    with pytest.raises(OutOfMemoryError, match="a batch of 20"):
        Featurizer(net(), Room(8), proj_dim=64).check(X)


def test_no_room_for_the_data(monkeypatch, tmp_path):
    def to_device(batch, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    featurizer = Featurizer(net(), proj_dim=64)
    monkeypatch.setattr("pntk.featurizer.to_device", to_device)
    with pytest.raises(OutOfMemoryError, match="a batch of 2 takes"):
        featurizer.featurize(X, tmp_path / "a.h5", progress=False)


def test_rows_that_were_written_are_kept_and_a_smaller_batch_goes_on(tmp_path):
    path, room = tmp_path / "a.h5", 8

    def full(module, args, output):
        if len(output) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model = net()
    model[1].register_forward_hook(full)
    featurizer = Featurizer(model, proj_dim=64)
    original, made = featurizer.rows_and_values, []

    def rows_and_values(batch):
        nonlocal room
        room = 4 if made else 8
        made.append(len(batch))
        return original(batch)

    featurizer.rows_and_values = rows_and_values
    with pytest.raises(OutOfMemoryError, match=r"a batch of 8 takes .*about 4 fit"):
        featurizer.featurize(X, path, batch_size=8, progress=False)
    with FeatureStore(path) as store:
        assert store.num_done == 8
    with featurizer.featurize(X, path, batch_size=4, progress=False) as store:
        rows = torch.cat([original(X[i : i + 4])[0] for i in range(0, N, 4)])
        torch.testing.assert_close(store.torch(), rows, rtol=1e-5, atol=1e-6)


class FullAt:
    """An output for which memory runs out in one of its calls."""

    def __init__(self, call):
        self.left = call

    def __call__(self, model, batch):
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(batch).sum(1)


def test_the_fallback_does_not_take_it_for_a_model_that_cannot_be_vectorised():
    output = FullAt(0)
    featurizer = Featurizer(net(), output, proj_dim=64, fallback="*")
    featurizer(X[:4])
    output.left = 2  # the first is the ordinary forward pass
    with pytest.raises(OutOfMemoryError):
        featurizer(X[:4])
    assert output.left == 0 and featurizer._fallback._vectorised


def test_the_probe_does_not_take_it_for_a_tensor_that_cannot_be_expanded():
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.head = nn.Embedding(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(x + self.places(torch.arange(5)).sum(-2))

    # after the plain one, one that counts bytes, and those of two and three samples
    output = FullAt(5)
    featurizer = Featurizer(Places(), output, proj_dim=64)
    with pytest.raises(OutOfMemoryError, match="a batch of 4"):
        featurizer(X[:4])
    assert output.left == 0 and not featurizer._plan.fallback
    assert featurizer(X[:4]).shape == (4, 64)


def test_other_errors_are_not_touched():
    with pytest.raises(RuntimeError, match="of another kind"):
        Featurizer(net(), Room(2, RuntimeError("of another kind")), proj_dim=64)(X)


@pytest.mark.parametrize(
    ("free", "cached", "fits"),
    [
        (20_000, 0, 10),  # half of it, at 1000 a sample
        (10_000, 10_000, 10),
        (3_000, 0, 1),
        (1_000, 0, 50),  # less than one by estimate, and more than there were: no estimate is right
        (10**9, 0, 50),
    ],
)
def test_the_estimate_on_a_gpu(monkeypatch, free, cached, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**10))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7_000 + cached)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7_000)
    error = out_of_memory(plan(600, 1), projector(100), 100, torch.device("cuda", 1))
    assert f"a batch of 100 takes more memory than cuda:1 has; about {fits} fit" in str(error)
    assert f"use batch_size={fits}, or memory_budget={2 * 1000 * fits}," in str(error)


@pytest.mark.gpu
def test_a_gpu_that_is_too_small():
    featurizer = Featurizer(nn.Linear(5, 3).cuda(), proj_dim=64)
    featurizer(X.cuda())
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        with pytest.raises(OutOfMemoryError, match=r"a batch of 50000000 takes .* use batch_size="):
            featurizer(torch.zeros(1, 5, device="cuda").expand(50_000_000, 5))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
