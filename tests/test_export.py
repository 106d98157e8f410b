"""Rows copied out of stores, single, joined and of half precision."""

import sys

import numpy as np
import pytest
import torch

from pntk import FeatureStore
from pntk.errors import ConfigError, MissingExtraError, StoreError
from pntk.export import export
from pntk.store import DONE, SKIPPED, RowWriter, StoreHeader, join

MODULE = sys.modules["pntk.export"]  # of which pntk.export is the function
N, K = 11, 6
ROWS = np.random.default_rng(0).standard_normal((N, K)).astype("float32")
LABELS = np.arange(N) % 4


def make(path, rows=ROWS, labels=LABELS, skipped=(), dtype="float32"):
    header = StoreHeader(
        rows=len(rows), width=K, dtype=dtype, projection={"seed": 0}, output={"name": "pntk"},
        params=(("w", (2, 3)),), weights="ab", precision="fp32", columns={"labels": "int64"},
    )  # fmt: skip
    with RowWriter.open(path, header) as writer:
        mask = np.isin(np.arange(len(rows)), skipped)
        writer.write(np.arange(len(rows)), rows, {"labels": labels}, mask)
    return FeatureStore(path)


@pytest.fixture(params=["single", "joined", "float16", "float64"])
def store(request, tmp_path):
    """Eleven rows, of which row 3 is skipped."""
    if request.param == "joined":
        make(tmp_path / "a.h5", ROWS[:5], LABELS[:5], [3])
        make(tmp_path / "b.h5", ROWS[5:], LABELS[5:])
        return FeatureStore(join(tmp_path / "joined.h5", [tmp_path / "a.h5", tmp_path / "b.h5"]))
    dtype = "float32" if request.param == "single" else request.param
    rows = ROWS.astype("float64") if dtype == "float64" else ROWS
    return make(tmp_path / "single.h5", rows, skipped=[3], dtype=dtype)


SELECTIONS = [None, slice(2, 9), slice(None, None, -3), [7, 0, 7], LABELS == 1, torch.tensor([10])]


@pytest.mark.parametrize("rows", SELECTIONS, ids=str)
@pytest.mark.parametrize("block", [1, 2**24])
def test_all_formats_hold_the_same(store, tmp_path, rows, block, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    monkeypatch.setattr(MODULE, "_BLOCK_BYTES", block)
    numbers = np.arange(N)[slice(None) if rows is None else np.asarray(rows)
                           if not isinstance(rows, slice) else rows]  # fmt: skip
    expected, skipped = store.numpy()[numbers], numbers == 3
    np.testing.assert_array_equal(np.load(export(store, tmp_path / "x.npy", rows=rows)), expected)
    packed = np.load(export(store, tmp_path / "x.npz", rows=rows))
    loaded = safetensors.load_file(export(store, tmp_path / "x.safetensors", rows=rows))
    for found in (packed, loaded):
        assert set(found) == {"features", "labels", "skipped"}
        np.testing.assert_array_equal(found["features"], expected)
        np.testing.assert_array_equal(found["labels"], LABELS[numbers])
        np.testing.assert_array_equal(found["skipped"].astype(bool), skipped)
    copy = FeatureStore(export(store, tmp_path / "x.h5", rows=rows))
    assert copy.verify().ok and copy.header.dtype == store.header.dtype
    np.testing.assert_array_equal(copy.numpy(), expected)
    np.testing.assert_array_equal(copy.labels, LABELS[numbers])
    assert copy.done.tolist() == [SKIPPED if out else DONE for out in skipped]
    if rows is None:
        assert set(copy.header.columns) == {"labels"}
    else:
        assert copy.column("indices").tolist() == numbers.tolist()


def test_merging_gives_the_single_store(tmp_path):
    whole = make(tmp_path / "whole.h5")
    make(tmp_path / "a.h5", ROWS[:4], LABELS[:4])
    make(tmp_path / "b.h5", ROWS[4:], LABELS[4:])
    joined = FeatureStore(join(tmp_path / "j.h5", [tmp_path / "a.h5", tmp_path / "b.h5"]))
    merged = export(joined, tmp_path / "merged.h5")
    assert merged.read_bytes() == whole.path.read_bytes()


def test_storage_can_be_changed(tmp_path):
    store = make(tmp_path / "full.h5")
    half = FeatureStore(export(store, tmp_path / "half.h5", storage="fp16"))
    assert half.header.dtype == "float16"
    assert half.files[0].stat().st_size <= store.path.stat().st_size + 8192
    back = FeatureStore(export(half, tmp_path / "back.h5", storage="full"))
    assert back.header.dtype == "float32"
    np.testing.assert_array_equal(back.numpy(), half.numpy())
    np.testing.assert_allclose(half.numpy(), ROWS, rtol=2**-11)


def test_faiss(store, tmp_path):
    faiss = pytest.importorskip("faiss")
    index = faiss.read_index(str(export(store, tmp_path / "x.faiss", rows=[4, 9, 1])))
    rows = store.numpy()[[4, 9, 1]].astype("float32")
    np.testing.assert_array_equal(index.reconstruct_n(0, 3), rows)


def test_faiss_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pntk\[search\]"):
        export(make(tmp_path / "a.h5"), tmp_path / "x.faiss")
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.csv", {}, r"x.csv ends in '.csv'; expected .h5, .npy"),
        ("x.npy", {"storage": "fp16"}, "storage='fp16' is for .h5, x.npy is none"),
        ("x.h5", {"storage": "fp8"}, "storage is 'fp8'; expected full or fp16"),
        ("x.h5", {"rows": [11]}, "rows: index 11 is out of bounds.*rows 0 to 10"),
        ("x.h5", {"rows": []}, r"rows is \[\], which selects none of 11 rows"),
        ("x.npy", {"rows": [[1]]}, "which selects none"),
        ("a.h5", {}, "a.h5 is an HDF5 file"),
        ("x.npy", {"rows": 5}, "rows: .*; the store has rows 0 to 10"),
        ("x.npy", {"rows": "abc"}, "rows: .*; the store has rows 0 to 10"),
        ("b.npy", {}, "b.npy is an HDF5 file"),
        ("no/x.npy", {}, "no does not exist"),
    ],
)
def test_refusals(tmp_path, name, options, message):
    store = make(tmp_path / "a.h5")
    make(tmp_path / "b.h5").path.rename(tmp_path / "b.npy")
    with pytest.raises(ConfigError, match=message):
        export(store, tmp_path / name, **options)


def test_half_precision_of_float64(tmp_path):
    store = make(tmp_path / "a.h5", ROWS.astype("float64"), dtype="float64")
    with pytest.raises(ConfigError, match="storage='fp16' is for rows of float32"):
        export(store, tmp_path / "x.h5", storage="fp16")


def test_an_existing_store_stays(tmp_path):
    before = make(tmp_path / "b.h5").path.read_bytes()
    with pytest.raises(
        ConfigError, match=r"b\.h5 is an HDF5 file, such as a store; choose another"
    ):
        export(make(tmp_path / "a.h5"), tmp_path / "b.h5")
    assert (tmp_path / "b.h5").read_bytes() == before


def test_a_selection_is_not_resumed(tmp_path):
    store = make(tmp_path / "a.h5")
    path = export(store, tmp_path / "b.h5", rows=slice(None, None, -1))
    with pytest.raises(StoreError, match=r"selected from another store, a\.h5, and cannot be feat"):
        RowWriter.open(path, FeatureStore(path).header)
    with RowWriter.reopen(path) as writer:
        writer.forget([2])


def test_missing_rows(tmp_path):
    store = make(tmp_path / "a.h5")
    with RowWriter.reopen(store.path) as writer:
        writer.forget([2])
    with pytest.raises(StoreError, match="1 of 11 rows are missing"):
        export(store, tmp_path / "x.npy")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = make(tmp_path / "a.h5")
    monkeypatch.setattr(MODULE, "_write_features", full)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)"):
            export(store, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_damaged_rows_are_found_on_the_way(tmp_path):
    path = make(tmp_path / "a.h5").path
    with RowWriter.reopen(path) as writer:
        writer._view("features")[4] += 1
    export(FeatureStore(path), tmp_path / "x.npy")
    for name in ("y.npy", "y.h5", "y.npz"):
        with pytest.raises(StoreError, match=r"a\.h5: row 4 is damaged"):
            export(FeatureStore(path, check=True), tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5", "x.npy"]
