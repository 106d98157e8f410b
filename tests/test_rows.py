import threading

import numpy as np
import pytest
import torch

from pntk.errors import ConfigError, StoreError
from pntk.rows import Rows, as_rows, check_widths, inverse_norms, row_norms
from pntk.store import FeatureStore, RowWriter, StoreHeader


def header(rows, width, dtype="float32"):
    return StoreHeader(
        rows=rows,
        width=width,
        dtype=dtype,
        projection={},
        output={},
        params=(),
        weights="",
        precision="fp32",
    )


@pytest.fixture
def store(tmp_path):
    """Seven rows, of which the sixth was skipped."""
    values = np.arange(14, dtype=np.float32).reshape(7, 2)
    with RowWriter.open(tmp_path / "a.h5", header(7, 2)) as writer:
        writer.write(np.arange(7), values, {}, skipped=np.arange(7) == 5)
    return FeatureStore(tmp_path / "a.h5")


def test_tensors_and_arrays():
    x = torch.randn(3, 4)
    rows = as_rows(x)
    assert rows.shape == (3, 4) and rows.dtype == torch.float32 and not rows.copied
    assert rows.block(1, 3).data_ptr() == x[1:].data_ptr()
    assert rows.block(2, 9).shape == (1, 4)
    assert as_rows(rows) is rows
    assert as_rows(x.numpy()).block(0, 1).data_ptr() == x.data_ptr()
    assert as_rows(x.double().numpy()).dtype == torch.float64


def test_rows_carry_no_graph():
    assert not as_rows(torch.ones(2, 2, requires_grad=True)).block(0, 2).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_block_by_block(dtype):
    rows = as_rows(torch.ones(2, 2, dtype=dtype))
    assert rows.source.dtype == dtype and rows.copied
    assert rows.dtype == rows.block(0, 1).dtype == torch.float32


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
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    with RowWriter.open(tmp_path / "a.h5", header(3, 2)) as writer:
        writer.write(np.arange(2), values[:2], {})
    with pytest.raises(StoreError, match="1 of 3 rows are missing"):
        as_rows(FeatureStore(tmp_path / "a.h5"))
    with RowWriter.open(tmp_path / "a.h5", header(3, 2)) as writer:
        writer.write(np.arange(2, 3), values[2:], {})
    rows = as_rows(FeatureStore(tmp_path / "a.h5"))
    assert np.array_equal(rows.block(0, 3).numpy(), values)


def test_stores(store):
    rows = as_rows(store)
    assert rows.shape == (7, 2) and rows.dtype == torch.float32 and rows.copied
    assert rows.block(3, 5).tolist() == [[6, 7], [8, 9]]
    assert rows.block(6, 9).tolist() == [[12, 13]]
    assert rows.skipped.tolist() == [5]
    assert as_rows(torch.ones(2, 2)).skipped.tolist() == []


def test_a_store_is_read_and_not_mapped(store, monkeypatch):
    monkeypatch.setattr(FeatureStore, "torch", lambda _: pytest.fail("mapped"))
    monkeypatch.setattr(FeatureStore, "numpy", lambda _: pytest.fail("mapped"))
    assert len(list(as_rows(store).blocks(3))) == 3


@pytest.fixture
def small_are_large(monkeypatch):
    """Blocks of any size count as large."""
    monkeypatch.setattr("pntk.rows._FROM_SYSTEM", 0)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("large", [0, 2**25])
def test_blocks(store, size, large, monkeypatch):
    monkeypatch.setattr("pntk.rows._FROM_SYSTEM", large)
    for rows in (as_rows(store), as_rows(store.torch())):
        found = list(rows.blocks(size))
        assert [start for start, _ in found] == list(range(0, 7, size))
        assert torch.equal(torch.cat([block for _, block in found]), store.torch())


def test_the_next_block_is_read_meanwhile(store, monkeypatch, small_are_large):
    reads, read = [], FeatureStore.read

    def watch(self, start, stop):
        reads.append((start, threading.current_thread() is threading.main_thread()))
        arrived.set()
        return read(self, start, stop)

    arrived = threading.Event()
    monkeypatch.setattr(FeatureStore, "read", watch)
    blocks = as_rows(store).blocks(2)
    next(blocks)
    arrived.clear()
    while len(reads) < 2:
        assert arrived.wait(10)
    assert reads == [(0, False), (2, False)]
    blocks.close()
    assert len(reads) == 2  # and no more are read than were asked for


def test_an_error_while_reading_reaches_the_caller(store, monkeypatch, small_are_large):
    def fail(self, start, stop):
        raise StoreError("truncated")

    monkeypatch.setattr(FeatureStore, "read", fail)
    with pytest.raises(StoreError, match="truncated"):
        list(as_rows(store).blocks(2))


def test_widths():
    a, b = as_rows(torch.zeros(1, 3)), as_rows(torch.zeros(2, 4))
    check_widths(a, Rows(torch.zeros(2, 3)))
    with pytest.raises(ConfigError, match="rows are 3 and 4 wide; expected rows of one projection"):
        check_widths(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-36, 1e-20, 1.0, 1e20, 1e36])
def test_row_norms(size, dtype):
    block = torch.randn(5, 100, dtype=torch.float64) * size
    found = row_norms(block.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double() / size, block.norm(dim=1) / size, rtol=1e-6, atol=0)


def test_norms_of_rows_of_all_sizes():
    block = torch.tensor([[0.0, 0], [3e30, 4e30], [3e-30, 4e-30], [3, 4], [float("nan"), 1]])
    found = row_norms(block)
    torch.testing.assert_close(found[:4], torch.tensor([0, 5e30, 5e-30, 5]), rtol=1e-6, atol=0)
    assert found[4].isnan()


@pytest.mark.parametrize("tile", [1, 2, 100])
def test_inverse_norms(tile):
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    for given in (rows, as_rows(rows)):
        torch.testing.assert_close(inverse_norms(given, tile), torch.tensor([0.2, 0.0, 0.5]))


def test_norms_of_no_rows():
    assert row_norms(torch.empty(0, 4)).shape == (0,)
