import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from pntk.errors import ConfigError, MissingExtraError
from pntk.ntk import sources, spectrum
from pntk.ntk.kernel_file import open_kernel
from pntk.ntk.projected import ntk
from pntk.ntk.sources import from_rows
from pntk.ntk.spectrum import eigenvalues, spectrum_of

KNOWN = [100.0, 30.0, 5.0, 5.0, 1.0, 0.25, 0.01]


def close(found, expected, scale=1.0):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10 * scale
    )


def test_closed_forms():
    close(eigenvalues(3 * torch.eye(5)), [3.0] * 5)
    ones = spectrum_of(torch.ones(6, 6))
    close(ones.values, [6.0, 0, 0, 0, 0, 0])
    assert ones.rank == 1 and ones.condition_number == math.inf
    assert ones.effective_rank == pytest.approx(1)
    assert ones.participation_ratio == pytest.approx(1)
    close(eigenvalues(torch.tensor([[2.0]])), [2.0])
    close(eigenvalues(np.array([[2.0, 1.0], [1.0, 2.0]])), [3.0, 1.0])


def test_known_eigenvalues(kernel_with):
    found = spectrum_of(kernel_with(KNOWN))
    close(found.values, KNOWN)
    assert found.condition_number == pytest.approx(1e4)
    assert found.trace == pytest.approx(sum(KNOWN))
    assert found.squares == pytest.approx(sum(x * x for x in KNOWN))
    assert found.participation_ratio == pytest.approx(found.trace**2 / found.squares)
    assert (found.size, found.rank, found.complete) == (7, 7, True)
    some = spectrum_of(kernel_with(KNOWN), num=3)
    close(some.values, KNOWN[:3])
    assert not some.complete
    assert some.participation_ratio == pytest.approx(found.participation_ratio)


@pytest.mark.parametrize("block_bytes", [1, 1000, 2**26])
@pytest.mark.parametrize("k", [8, 40])
def test_every_way_gives_the_same(monkeypatch, tmp_path, make_store, block_bytes, k):
    monkeypatch.setattr(sources, "BLOCK_BYTES", block_bytes)
    rows = torch.randn(30, k, dtype=torch.float64) + 0.5
    kernel = rows @ rows.T
    expected = torch.linalg.svdvals(rows).square()
    store = make_store(tmp_path / "rows.h5", rows)
    ntk(rows, out=tmp_path / "kernel.h5")
    for given in (kernel, tmp_path / "kernel.h5", open_kernel(tmp_path / "kernel.h5")):
        close(eigenvalues(given)[: min(30, k)], expected, float(expected[0]))
        close(eigenvalues(given, 5, "lanczos"), expected[:5])
    for given in (from_rows(rows), store, str(tmp_path / "rows.h5")):
        whole = spectrum_of(given, method="dense")
        close(whole.values, expected, float(expected[0]))
        assert whole.trace == pytest.approx(float(kernel.trace()))
        assert whole.complete and len(whole.values) == min(30, k)
        assert (whole.condition_number == math.inf) == (k < 30)
        close(eigenvalues(given, 5, "lanczos"), expected[:5])


def test_lanczos_repeats(kernel_with):
    kernel = kernel_with(torch.linspace(0, 1, 80) ** 6)
    first, second = (eigenvalues(kernel, 4, "lanczos") for _ in range(2))
    assert torch.equal(first, second)
    close(eigenvalues(kernel, 4, "lanczos", seed=1), first)
    ones = torch.ones(40, 40)  # where it has to start anew, with other vectors
    assert torch.equal(eigenvalues(ones, 3, "lanczos"), eigenvalues(ones, 3, "lanczos"))


def test_rank_of_float32_kernels():
    rows = torch.randn(200, 20) + 2
    found = spectrum_of(rows @ rows.T)
    assert found.rank == 20 and found.condition_number == math.inf
    wide = torch.randn(50, 300) + 2
    assert spectrum_of(wide @ wide.T).condition_number < 1e4


def test_auto_is_dense_until_it_is_too_large(monkeypatch):
    def refuse(*_):
        raise AssertionError

    rows = torch.randn(30, 10)
    with monkeypatch.context() as patch:
        patch.setattr(spectrum, "_lanczos", refuse)
        assert len(eigenvalues(rows @ rows.T, 2)) == 2
        patch.setattr(spectrum, "LARGEST_DENSE", 10)
        assert len(eigenvalues(from_rows(rows))) == 10
    monkeypatch.setattr(spectrum, "LARGEST_DENSE", 20)
    monkeypatch.setattr(torch.linalg, "eigvalsh", refuse)
    assert len(eigenvalues(rows @ rows.T, 2)) == 2
    with pytest.raises(
        ConfigError, match=r"all 30 eigenvalues .* 7,200 bytes.* up to 20 x 20; use"
    ):
        eigenvalues(rows @ rows.T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "power"}, "method is 'power'; expected one of auto, dense, lanczos"),
        ({"num": 0}, r"num is 0; expected 1 to 4, as many .*, or None for all"),
        ({"num": 5}, "num is 5; expected 1 to 4"),
        ({"num": True}, "num is True"),
        ({"method": "lanczos"}, "fewer than all 4 eigenvalues, and num is None; use num=1"),
        ({"method": "lanczos", "num": 4}, "fewer than all 4 eigenvalues, and num is 4"),
    ],
)
def test_what_cannot_be_computed(options, message):
    with pytest.raises(ConfigError, match=message):
        eigenvalues(from_rows(torch.randn(9, 4)), **options)


def test_too_large_for_memory(monkeypatch):
    monkeypatch.setattr(spectrum, "available_memory", lambda: 100)
    with pytest.raises(
        ConfigError, match=r"takes 144 bytes for 3 eigenvalues and 100 are available"
    ):
        eigenvalues(torch.eye(3))
    monkeypatch.setattr(spectrum, "available_memory", lambda: None)
    assert len(eigenvalues(torch.eye(3))) == 3


def test_lanczos_that_does_not_converge():
    kernel = torch.diag(torch.linspace(1, 1.001, 300, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"of 4 eigenvalues in max_iterations=1; allow more, or"):
        eigenvalues(kernel, 4, "lanczos", max_iterations=1)


def test_lanczos_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match="method='lanczos' needs scipy, which is not"):
        eigenvalues(torch.eye(9), 2, "lanczos")
    assert len(eigenvalues(torch.eye(9))) == 9


def test_import_is_light():
    program = (
        "import sys, pntk.ntk.spectrum, pntk.ntk.monitor, pntk.report.spectrum_plots\n"
        "heavy = {'scipy', 'sklearn', 'matplotlib', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
