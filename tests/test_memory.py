import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pntk import Featurizer
from pntk.errors import ConfigError
from pntk.memory import batch_that_fits, parse_bytes


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
