import numpy as np
import pytest
import torch

from pntk.errors import ConfigError, StoreError
from pntk.rows import as_rows, check_widths, inverse_norms
from pntk.store import FeatureStore, RowWriter, StoreHeader


def test_tensors_and_arrays():
    x = torch.randn(3, 4)
    assert as_rows(x) is x
    assert torch.equal(as_rows(x.numpy()), x)
    assert as_rows(x.double().numpy()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype):
    assert as_rows(torch.ones(2, 2, dtype=dtype)).dtype == torch.float32


def test_read_only_arrays():
    x = np.ones((3, 4), np.float32)
    x.flags.writeable = False
    assert as_rows(x).shape == (3, 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0]], r"queries is a list; expected a tensor or array \[n, k\], or a FeatureStore"),
        (torch.zeros(3), r"queries is torch.float32 of shape \(3,\); expected floating point"),
        (torch.zeros(3, 2, dtype=torch.int64), "queries is torch.int64 of shape"),
        (torch.zeros(0, 2), r"queries is empty: shape \(0, 2\)"),
        (torch.zeros(2, 0), r"queries is empty: shape \(2, 0\)"),
    ],
)
def test_what_is_no_rows(rows, message):
    with pytest.raises(ConfigError, match=message):
        as_rows(rows, "queries")


def test_stores_must_be_complete(tmp_path):
    header = StoreHeader(
        rows=3,
        width=2,
        dtype="float32",
        projection={},
        output={},
        params=(),
        weights="",
        precision="fp32",
    )
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    with RowWriter.open(tmp_path / "a.h5", header) as writer:
        writer.write(np.arange(2), values[:2], {})
    with pytest.raises(StoreError, match="1 of 3 rows are missing"):
        as_rows(FeatureStore(tmp_path / "a.h5"))
    with RowWriter.open(tmp_path / "a.h5", header) as writer:
        writer.write(np.arange(2, 3), values[2:], {})
    assert np.array_equal(as_rows(FeatureStore(tmp_path / "a.h5")).numpy(), values)


def test_widths():
    check_widths(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="rows are 3 and 4 wide; expected rows of one projection"):
        check_widths(torch.zeros(1, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("tile", [1, 2, 100])
def test_inverse_norms(tile):
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(inverse_norms(rows, tile), torch.tensor([0.2, 0.0, 0.5]))
