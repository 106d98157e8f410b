import h5py
import numpy as np
import pytest
import torch
from torch import nn

from pntk import empirical_ntk
from pntk.errors import ConfigError, StoreError
from pntk.ntk import sources
from pntk.ntk.kernel_file import open_kernel
from pntk.ntk.opening import as_source, open_file
from pntk.ntk.projected import ntk
from pntk.ntk.sources import from_rows


@pytest.fixture(params=[1, 1000, 2**26])
def block_bytes(request, monkeypatch):
    """Blocks of one row, of a few, and of all."""
    monkeypatch.setattr(sources, "BLOCK_BYTES", request.param)


def make_rows(n=30, k=7):
    return torch.randn(n, k) + 1


@pytest.mark.parametrize("k", [7, 30, 41])
def test_kernel_of_rows_is_that_in_memory(block_bytes, k):
    rows = make_rows(k=k)
    kernel = rows.double() @ rows.double().T
    centring = torch.eye(30, dtype=torch.float64) - 1 / 30
    centred = centring @ kernel @ centring
    for source in (from_rows(rows), as_source(kernel)):
        for made, expected in ((source, kernel), (source.centred(), centred)):
            found = torch.cat([block for _, block in made.blocks()])
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert source.traces()[0] == pytest.approx(float(kernel.trace()))
    assert as_source(kernel).traces()[1] == pytest.approx(float(kernel.square().sum()))


@pytest.mark.parametrize("k", [7, 41])
def test_gram_of_rows_is_the_smaller_one(block_bytes, k):
    rows = make_rows(k=k)
    exact = rows.double()
    expected = exact.T @ exact if k < 30 else exact @ exact.T
    torch.testing.assert_close(from_rows(rows).gram(), expected, rtol=1e-12, atol=1e-12)
    vector = torch.randn(k, dtype=torch.float64)
    torch.testing.assert_close(from_rows(rows).apply(vector), exact.T @ (exact @ vector))


def test_centring_cancels_nothing():
    rows = make_rows().double()
    far = from_rows(rows + 1e6).centred()
    near = from_rows(rows).centred()
    torch.testing.assert_close(far.gram(), near.gram(), rtol=1e-8, atol=1e-8)


def test_files_are_told_apart(tmp_path, make_store):
    store = make_store(tmp_path / "rows.h5", make_rows())
    ntk(store, out=tmp_path / "kernel.h5")
    assert open_file(tmp_path / "rows.h5").shape == (30, 7)
    assert open_file(tmp_path / "kernel.h5").header.shape == (30, 30)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = np.bytes_("cat pictures")
    with pytest.raises(
        StoreError, match=r"neither a pntk kernel nor a pntk store .*'cat pictures'"
    ):
        as_source(tmp_path / "other.h5")
    for given in (tmp_path / "rows.h5", str(tmp_path / "kernel.h5"), store):
        assert as_source(given).size == 30


def test_kernel_between_two_sets_is_refused(tmp_path):
    rows = make_rows()
    ntk(rows, rows + 1, out=tmp_path / "cross.h5")
    with pytest.raises(
        ConfigError, match=r"cross.h5 is the 30 x 30 kernel between two sets of rows"
    ):
        as_source(tmp_path / "cross.h5")
    ntk(rows, rows.clone(), out=tmp_path / "same.h5")
    assert as_source(open_kernel(tmp_path / "same.h5")).size == 30


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ([[1.0]], r"kernel is a list; expected a tensor or array \[n, n\].*from_rows\(rows\)"),
        (torch.ones(5, 3), r"kernel has shape \(5, 3\); expected \[n, n\].*from_rows\(rows\)"),
        (np.ones(4), r"kernel has shape \(4,\); expected"),
        (torch.ones(0, 0), r"kernel has shape \(0, 0\)"),
        (torch.eye(3).long(), r"kernel is torch.int64; expected floating point: use .double\(\)"),
        (torch.tensor([[1.0, 2.0], [2.5, 1.0]]), r"entries \[0, 1\] and \[1, 0\] differ by 0.5"),
        (torch.diag(torch.tensor([1.0, float("nan")])), "row 1 holds NaN or infinity"),
        (torch.full((2, 2), float("inf")), "row 0 holds NaN or infinity"),
    ],
)
def test_what_is_no_kernel(kernel, message):
    with pytest.raises(ConfigError, match=message):
        as_source(kernel)


def test_kernels_of_several_outputs_are_refused(tmp_path):
    path = empirical_ntk(nn.Linear(3, 2), torch.randn(4, 3), kind="full", out=tmp_path / "k.h5")
    with pytest.raises(ConfigError, match=r"k\.h5 holds 2 x 2 numbers .*kind='trace' or 'pntk'"):
        as_source(path)


def test_rounding_is_no_asymmetry(block_bytes):
    kernel = make_rows() @ make_rows(k=7).T
    kernel = kernel @ kernel.T
    kernel[2, 5] *= 1 + 1e-6
    assert as_source(kernel).size == 30
    kernel[2, 5] += kernel.abs().max()
    with pytest.raises(ConfigError, match=r"entries \[2, 5\] and \[5, 2\] differ"):
        as_source(kernel)


def test_rows_that_are_not_finite_are_named(block_bytes):
    rows = make_rows()
    rows[17, 3] = float("inf")
    for work in (from_rows(rows).traces, from_rows(rows).centred):
        with pytest.raises(ConfigError, match="row 17 holds NaN or infinity"):
            work()
