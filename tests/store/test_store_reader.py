import multiprocessing
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch

from pntk.errors import ConfigError, StoreError
from pntk.store import DONE, SKIPPED, FeatureStore, RowWriter, Shard, join
from pntk.store import reader as reader_module
from pntk.store.part import Part

DTYPES = ["float32", "float64", "float16"]


@pytest.fixture
def store(full_store):
    with FeatureStore(full_store) as store:
        yield store


def test_attributes(store, full_store, make_header, values):
    _, columns = values(make_header())
    assert (len(store), store.shape, store.dtype) == (10, (10, 6), torch.float32)
    assert store.path == full_store.resolve()
    assert store.header == make_header()
    assert (
        store.done.tolist() == [DONE] * 7 + [SKIPPED, DONE, DONE] and store.done.dtype == np.uint8
    )
    assert (store.num_done, store.complete, store.skipped.tolist()) == (10, True, [7])
    assert store.labels.tolist() == columns["labels"].tolist() and store.labels.dtype == np.int64
    assert store.column("reweighting").dtype == np.float32
    assert repr(store) == f"FeatureStore('{store.path}', 10/10 rows, k=6, float32)"
    store.require_complete()


def test_float64(tmp_path, make_header):
    with RowWriter.open(tmp_path / "s.h5", make_header(dtype="float64", columns={})) as writer:
        writer.write([0], np.full((1, 6), 0.1))
    store = FeatureStore(tmp_path / "s.h5")
    assert store.dtype == torch.float64 == store[0].dtype
    assert store[0, 0].item() == 0.1
    assert store.labels is None and store.files == [store.path]


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


# --- reading ranges


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 6])
def test_read(make_store, make_header, held, dtype, width, check):
    store = FeatureStore(make_store("s.h5", dtype=dtype, width=width), check=check)
    rows = held(make_header(dtype=dtype, width=width))
    for start in range(11):
        for stop in range(start, 11):
            found = store.read(start, stop)
            assert (found.dtype, found.shape) == (store.dtype, (stop - start, width))
            np.testing.assert_array_equal(found.numpy(), rows[start:stop])


def test_what_is_read_is_the_callers(store):
    before = store.path.read_bytes()
    store.read(0, 10).fill_(7)
    assert store.read(0, 1)[0, 0] != 7 and store[0, 0] != 7
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 11), (11, 11)])
def test_read_outside(store, start, stop):
    with pytest.raises(ConfigError, match=f"rows {start} to {stop} of a store of 10 rows"):
        store.read(start, stop)


# --- indexing

KEYS = [
    0,
    -1,
    np.int64(3),
    np.uint8(9),
    np.array(2),
    slice(2, 5),
    slice(8, 100),
    slice(20, 30),
    slice(None),
    slice(None, None, -2),
    slice(7, 1, -1),
    slice(-3, None),
    [4, 1, 1],
    [9],
    [-1, 0, 1, 2],
    [],
    range(3, 9),
    np.array([9, -10]),
    np.array([3, 250 - 256], dtype=np.int8),
    np.array([1, 9], dtype=np.uint8),
    np.array([1, 9], dtype=np.uint64),
    np.array([], dtype=np.int64),
    np.array([[1, 2], [2, -3]]),
    np.arange(10) % 2 == 0,
    np.zeros(10, dtype=bool),
    np.ones(10, dtype=bool),
    [True] * 3 + [False] * 7,
    None,
    ...,
    torch.tensor([2, 0]),
    torch.tensor([], dtype=torch.int64),
    torch.tensor(2),
    torch.arange(10) > 6,
]
REFUSED = [
    10,
    -11,
    [0, 10],
    [-11, 0],
    np.array([2**63], dtype=np.uint64),
    [0.0],
    1.5,
    "features",
    np.array([]),
    torch.tensor([]),
    np.ones(9, dtype=bool),
    [True, False],
]


KINDS = {  # dtype, check, where it is cut into shards
    "mapped": ("float32", False, [0, 10]),
    "checked": ("float32", True, [0, 10]),
    "float64": ("float64", True, [0, 10]),
    "float16": ("float16", False, [0, 10]),
    "joined": ("float32", False, [0, 4, 5, 10]),
    "joined float16": ("float16", True, [0, 1, 10]),
}


@pytest.fixture(scope="module", params=KINDS)
def indexed(request, tmp_path_factory, make_header, values, held):
    """A store that is indexed in one way or another, and its rows."""
    dtype, check, cuts = KINDS[request.param]
    folder = tmp_path_factory.mktemp("store")
    whole = make_header(dtype=dtype)
    rows, columns = values(whole)
    files = []
    for number, (start, stop) in enumerate(pairwise(cuts)):
        files.append(folder / f"{number}.h5")
        shard = Shard(number, len(cuts) - 1, start, 10)
        header = replace(whole, rows=stop - start, shard=shard)
        cells = {name: column[start:stop] for name, column in columns.items()}
        with RowWriter.open(files[-1], header) as writer:
            writer.write(range(stop - start), rows[start:stop], cells)
    path = join(folder / "joined.h5", files) if len(files) > 1 else files[0]
    with FeatureStore(path, check=check) as store:
        yield store, held(whole)


@pytest.fixture
def _small_blocks(monkeypatch):
    monkeypatch.setattr(reader_module, "_BLOCK_BYTES", 50)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_indexing_is_numpys(indexed, key):
    store, rows = indexed
    picked = store[key]
    assert isinstance(picked, torch.Tensor) and picked.dtype == store.dtype
    expected = rows[key.numpy() if isinstance(key, torch.Tensor) else key]
    assert picked.shape == expected.shape
    np.testing.assert_array_equal(picked.numpy(), expected)


@pytest.mark.parametrize("key", REFUSED, ids=repr)
def test_indexing_refuses_what_numpy_does(indexed, key):
    store, rows = indexed
    with pytest.raises(IndexError):
        rows[key.numpy() if isinstance(key, torch.Tensor) else key]
    with pytest.raises(IndexError):
        store[key]


@pytest.mark.parametrize("key", [(), (slice(1, 3), 2), (1, 2), (..., 0)], ids=repr)
def test_tuples(indexed, key):
    store, rows = indexed
    if store._tensor is not None and not store._check:
        np.testing.assert_array_equal(store[key].numpy(), rows[key])
        return
    with pytest.raises(ConfigError, match=r"picks columns too, .* store\[rows\]\[:, columns\]"):
        store[key]


def test_out_of_range_says_what(indexed):
    with pytest.raises(IndexError, match=r"index -?\d+ is out of bounds for .*10"):
        indexed[0][10]


def test_iteration(indexed):
    store, rows = indexed
    np.testing.assert_array_equal(torch.stack(list(store)).numpy(), rows)


def test_indexing_takes_little_memory(make_store, monkeypatch):
    """Rows go straight to the result, or through blocks of a few."""
    reads = []
    read = Part.read

    def spy(self, name, first=0, last=None, out=None):
        if name == "features" and out is None:
            reads.append(last - first)
        return read(self, name, first, last, out)

    monkeypatch.setattr(Part, "read", spy)
    monkeypatch.setattr(reader_module, "_BLOCK_BYTES", 5 * 24)
    store = FeatureStore(make_store("s.h5", rows=200, dtype="float16"))
    for key in (np.ones(200, bool), np.arange(200)[::-1], slice(None), np.arange(200) != 60):
        reads.clear()
        store[key]
        assert sum(reads) == len(np.arange(200)[key]) and max(reads) <= 10
        assert len(reads) <= 42  # neighbours together


# --- comparing with checksums


@pytest.mark.parametrize("dtype", DTYPES)
def test_check(make_store, flip, dtype):
    path = make_store("s.h5", skipped=[7], missing=[9], dtype=dtype)
    flip(path, "features", 4)
    flip(path, "features", 9)  # missing: its bytes mean nothing
    store = FeatureStore(path, check=True)
    message = r"s.h5: row 4 is damaged \(checksum is 0x\w+, the row's bytes give 0x\w+\); find all"
    for damaged in (lambda: store.read(0, 10), lambda: store[4], lambda: store[[8, 4]]):
        with pytest.raises(StoreError, match=message):
            damaged()
    assert store.read(0, 4).shape == (4, 6) == store[[0, 5, 7, 9]].shape
    assert FeatureStore(path).read(0, 10).shape == (10, 6)


@pytest.mark.parametrize("name", ["labels", "scales", "done", "checksums"])
def test_check_covers_all_of_a_row(make_store, flip, name):
    path = make_store("s.h5", dtype="float16")
    flip(path, name, 4)
    with pytest.raises(StoreError, match=r"row 4 is damaged \((checksum|done) is"):
        FeatureStore(path, check=True)[4]


def test_check_looks_at_the_bytes_that_it_returns(full_store, flip, monkeypatch):
    store = FeatureStore(full_store, check=True)
    read = Part.read

    def damage_later(self, name, *arguments, **options):
        result = read(self, name, *arguments, **options)
        if name == "features":
            flip(full_store, "features", 4)
        return result

    expected = store[4].clone()
    monkeypatch.setattr(Part, "read", damage_later)
    assert torch.equal(store[4], expected)


def test_check_survives_pickling(full_store, flip):
    flip(full_store, "features", 4)
    copy = pickle.loads(pickle.dumps(FeatureStore(full_store, check=True)))
    with pytest.raises(StoreError, match="row 4 is damaged"):
        copy[4]


# --- all rows


def test_half_is_not_mapped(make_store):
    store = FeatureStore(make_store("s.h5", dtype="float16"))
    for rows in (store.numpy(), store.labels, store.done):
        with pytest.raises(ValueError, match="read-only"):
            rows[0] = 1
    store.torch().zero_()
    assert store.torch().any() and np.array_equal(store.torch().numpy(), store.numpy())


@pytest.mark.parametrize("use", ["numpy", "torch"])
def test_too_little_memory(make_store, monkeypatch, use):
    store = FeatureStore(make_store("s.h5", dtype="float16"))
    monkeypatch.setattr(reader_module, "available_memory", lambda: 239)
    message = r"s.h5: its rows take 240 bytes in memory and 239 are available; .* read\(start, stop"
    with pytest.raises(StoreError, match=message):
        getattr(store, use)()
    assert store.read(0, 10).shape == (10, 6)
    for enough in (240, None):
        monkeypatch.setattr(reader_module, "available_memory", lambda enough=enough: enough)
        assert getattr(store, use)().shape == (10, 6)


@pytest.mark.parametrize("use", [lambda s: s.read(0, 7), lambda s: s[list(range(0, 10, 2))]])
def test_rows_that_no_memory_holds(make_store, monkeypatch, use):
    def refuse(*shape, **_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    store = FeatureStore(make_store("s.h5", dtype="float16"))
    monkeypatch.setattr(reader_module.torch, "empty", refuse)
    with pytest.raises(StoreError, match=r"s.h5: [57] rows take \d+ bytes, more than there is mem"):
        use(store)


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="about Linux")
def test_available_memory(monkeypatch):
    assert 2**20 < reader_module.available_memory() < 2**60

    def refuse(_):
        raise OSError

    monkeypatch.setattr(reader_module.Path, "read_text", refuse)
    assert reader_module.available_memory() is None


# --- life


def test_closed(full_store):
    store = FeatureStore(full_store)
    rows, array = store.torch(), store.numpy()
    store.close()
    store.close()
    uses = (store.numpy, store.torch, store.verify, store.require_complete, lambda: store[0])
    for use in (*uses, lambda: store.read(0, 1), lambda: store.labels, lambda: store.done):
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
