import multiprocessing
import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from pntk.errors import StoreError
from pntk.store import FeatureStore, RowWriter
from pntk.store import layout as layout_module


@pytest.fixture
def store(full_store):
    with FeatureStore(full_store) as store:
        yield store


def test_attributes(store, full_store, make_header, values):
    _, columns = values(make_header())
    assert (len(store), store.shape, store.dtype) == (10, (10, 6), torch.float32)
    assert store.path == full_store.resolve()
    assert store.header == make_header()
    assert store.done.tolist() == [1] * 7 + [2, 1, 1] and store.done.dtype == np.uint8
    assert (store.num_done, store.complete, store.skipped.tolist()) == (10, True, [7])
    assert store.labels.tolist() == columns["labels"].tolist() and store.labels.dtype == np.int64
    assert store.column("reweighting").dtype == np.float32
    assert repr(store) == f"FeatureStore('{store.path}', 10/10 rows, k=6, torch.float32)"
    store.require_complete()


def test_float64(tmp_path, make_header):
    with RowWriter.open(tmp_path / "s.h5", make_header(dtype="float64", columns={})) as writer:
        writer.write([0], np.full((1, 6), 0.1))
    store = FeatureStore(tmp_path / "s.h5")
    assert store.dtype == torch.float64 == store[0].dtype
    assert store[0, 0].item() == 0.1
    assert store.labels is None


def test_h5py_sees_the_same(store):
    with h5py.File(store.path, "r") as file:
        np.testing.assert_array_equal(file["features"][:], store.numpy())
        np.testing.assert_array_equal(file["labels"][:], store.labels)
        np.testing.assert_array_equal(file["done"][:], store.done)


def test_incomplete(full_store, make_header):
    with RowWriter.open(full_store, make_header()) as writer:
        writer.forget([1, 2, 3])
    store = FeatureStore(full_store)
    assert not store.complete and store.num_done == 7
    with pytest.raises(StoreError, match=r"3 of 10 rows are missing; run featurize again .*resume"):
        store.require_complete()


def test_follows_a_live_writer(full_store, make_header):
    store = FeatureStore(full_store)
    with RowWriter.open(full_store, make_header()) as writer:
        writer.forget([1])
        assert not store.complete


def test_unknown_column(store):
    with pytest.raises(StoreError, match=r"no column 'x'; there are \['labels', 'reweighting'\]"):
        store.column("x")
    with pytest.raises(StoreError, match="no column 'done'"):
        store.column("done")


# --- no copies


def test_zero_copy(store):
    rows = store.torch()
    assert np.shares_memory(store.numpy(), store.numpy())
    assert store.torch().data_ptr() == rows.data_ptr() == store[0].data_ptr()
    assert store[3].data_ptr() == rows.data_ptr() + 3 * 6 * 4
    assert store[2:8:2].data_ptr() == rows.data_ptr() + 2 * 6 * 4
    assert store[2:8:2].stride() == (12, 1)


@pytest.mark.parametrize("view", ["numpy", "done", "labels"])
def test_arrays_are_read_only(store, view):
    array = store.numpy() if view == "numpy" else getattr(store, view)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_writing_to_tensors_never_reaches_the_file(store):
    before = store.path.read_bytes()
    store.torch().fill_(7)
    store[0].zero_()
    assert store.torch()[1, 1] == 7
    assert store.numpy()[1, 1] != 7
    assert store.path.read_bytes() == before
    assert store.verify().ok


@pytest.mark.skipif(sys.platform != "linux", reason="about Linux's accounting of memory")
def test_private_map_may_exceed_memory(tmp_path, make_header, monkeypatch):
    monkeypatch.setattr("os.posix_fallocate", lambda *_: None)  # a sparse file
    monkeypatch.setattr("pntk.store.create._check_free", lambda *_: None)
    header = make_header(rows=2**20, width=2**19, columns={})  # 2 TiB of features
    try:
        RowWriter.open(tmp_path / "s.h5", header).close()
    except StoreError as error:
        pytest.skip(f"no sparse file of 2 TiB here: {error}")
    store = FeatureStore(tmp_path / "s.h5")
    assert not store[-1].any()


# --- indexing


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        np.int64(3),
        slice(2, 5),
        slice(8, 100),
        slice(20, 30),
        slice(None, None, -2),
        [4, 1, 1],
        [],
        np.array([9, -10]),
        np.arange(10) % 2 == 0,
        (slice(1, 3), 2),
        (1, 2),
        ...,
    ],
    ids=repr,
)
def test_indexing_is_numpys(store, key):
    picked = store[key]
    assert isinstance(picked, torch.Tensor) and picked.dtype == torch.float32
    np.testing.assert_array_equal(picked.numpy(), store.numpy()[key])


def test_indexing_with_tensors(store):
    assert torch.equal(store[torch.tensor([2, 0])], store.torch()[[2, 0]])
    assert torch.equal(store[torch.tensor(2)], store[2])


@pytest.mark.parametrize("key", [10, -11, [0, 10]])
def test_index_out_of_range(store, key):
    with pytest.raises(IndexError, match="out of bounds"):
        store[key]


def test_iteration(store):
    assert torch.equal(torch.stack(list(store)), store.torch())


# --- life


def test_closed(full_store):
    store = FeatureStore(full_store)
    rows, array = store.torch(), store.numpy()
    store.close()
    store.close()
    for use in (store.numpy, store.torch, store.verify, store.require_complete, lambda: store[0]):
        with pytest.raises(StoreError, match="the store is closed; open it again"):
            use()
    assert "closed" in repr(store) and len(store) == 10
    assert torch.equal(rows, torch.from_numpy(array.copy()))


def test_pickle(store):
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.torch(), store.torch())
    assert len(pickle.dumps(store)) < 500


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork(store):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.map(store.column("labels").__getitem__, range(10))
        assert sums == store.labels.tolist()
        assert pool.map(store.__getitem__, [2])[0].tolist() == store[2].tolist()


def test_truncated_after_opening(store):
    with open(store.path, "r+b") as file:
        file.truncate(30_000)
    with pytest.raises(StoreError, match="truncated since it was opened"):
        store.verify()


def test_map_that_fails(full_store, monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(layout_module.mmap, "mmap", refuse)
    with pytest.raises(StoreError, match=r"cannot map [\d,]+ bytes .*Cannot allocate memory"):
        FeatureStore(full_store)


def test_import_is_light():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, pntk.store; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    heavy = {"triton", "matplotlib", "sklearn", "scipy", "faiss", "transformers"}
    assert not heavy & set(done.stdout.split())
