"""A store holds the same rows whichever way they take to the thread that writes them."""

import threading
import traceback

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pntk import FeatureStore, Featurizer, writing
from pntk.errors import DataError, NonFiniteError, OutOfMemoryError, StoreError
from pntk.outputs import Margin, Values
from pntk.staging import DEPTH, PlainSlot

N, SIZE = 23, 5
X, Y = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3
OPTIONS = {"batch_size": SIZE, "progress": False}
PATIENCE = 20  # seconds, where only a defect waits for more than moments


class LateSlot:
    """Reads the tensors only when it is waited for, into buffers that it uses again."""

    def __init__(self):
        self.buffers = {}

    def start(self, tensors):
        self.tensors = dict(tensors)

    def finish(self):
        found = {}
        for name, tensor in self.tensors.items():
            buffer = self.buffers.setdefault(name, torch.empty(SIZE, *tensor.shape[1:]).to(tensor))
            found[name] = buffer[: len(tensor)].copy_(tensor)
        return found


@pytest.fixture(params=["as they are", "through buffers"], autouse=True)
def way(request, monkeypatch):
    if request.param == "through buffers":
        monkeypatch.setattr(writing, "slots_for", lambda device: [LateSlot() for _ in range(DEPTH)])
    return request.param


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pntk")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.h5"


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture
def featurizer(model):
    return Featurizer(model, "margin", proj_dim=64)


def raising_at(featurizer, batch, error):
    """Let the rows of one batch end in an error."""
    original, count = featurizer.rows_and_values, 0

    def rows_and_values(data):
        nonlocal count
        count += 1
        if count == batch + 1:
            raise error
        return original(data)

    featurizer.rows_and_values = rows_and_values


class Late:
    """A featurizer whose every batch is written only once the next one has been made."""

    def __init__(self, featurizer, monkeypatch):
        self.made = [threading.Event() for _ in range(-(-N // SIZE) + 1)]
        self.made[-1].set()  # nothing is made after the last
        self.rows_and_values, self.write = featurizer.rows_and_values, writing.RowWriter.write
        monkeypatch.setattr(featurizer, "rows_and_values", self.make)
        monkeypatch.setattr(writing.RowWriter, "write", lambda *args: self.wait_and_write(*args))
        self.count = 0

    def make(self, batch):
        found = self.rows_and_values(batch)
        self.made[self.count].set()
        self.count += 1
        return found

    def wait_and_write(self, writer, index, *rest):
        assert self.made[index[0] // SIZE + 1].wait(PATIENCE), "the next batch was not made"
        self.write(writer, index, *rest)


def test_a_batch_is_written_while_the_next_one_is_made(featurizer, path, monkeypatch):
    Late(featurizer, monkeypatch)
    with featurizer.featurize((X, Y), path, **OPTIONS) as store:
        assert store.complete
        assert np.array_equal(store.labels, Y.numpy())


class Refilled(Margin):
    """Returns its reweighting in the same memory each time."""

    memory = torch.empty(SIZE)

    def __call__(self, model, batch):
        found = super().__call__(model, batch)
        count = len(found.values)
        reweighting = self.memory[:count].copy_(found.reweighting)
        return Values(found.values, found.labels, reweighting)


def test_a_caller_may_fill_its_labels_again(model, path, monkeypatch):
    inputs, labels = torch.empty(SIZE, 5), torch.empty(SIZE, dtype=torch.long)

    def refill(examples):
        count = len(examples)
        torch.stack([x for x, _ in examples], out=inputs[:count])
        torch.stack([y for _, y in examples], out=labels[:count])
        return inputs[:count], labels[:count]

    loader = torch.utils.data.DataLoader(list(zip(X, Y, strict=True)), SIZE, collate_fn=refill)
    featurizer = Featurizer(model, Refilled(), proj_dim=64)
    rows, values = Featurizer(model, "margin", proj_dim=64).rows_and_values((X, Y))
    Late(featurizer, monkeypatch)
    with featurizer.featurize(loader, path, progress=False) as store:
        torch.testing.assert_close(store.torch(), rows, rtol=1e-5, atol=1e-6)
        assert np.array_equal(store.labels, Y.numpy())
        q = values.reweighting.numpy()
        np.testing.assert_allclose(store.column("reweighting"), q, rtol=1e-5)


class Watch(TorchDispatchMode):
    """Collect the operations of the thread that enters it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "keep"])
def test_the_thread_that_writes_leaves_torch_alone(model, path, on_nonfinite, monkeypatch):
    watches = []

    class WatchingSlot(PlainSlot):
        def finish(self):
            if not watches:
                watches.append(Watch())
                watches[0].__enter__()  # for as long as the thread lasts
            return super().finish()

    monkeypatch.setattr(writing, "slots_for", lambda device: [WatchingSlot(), WatchingSlot()])
    featurizer = Featurizer(model, "margin", proj_dim=64, on_nonfinite=on_nonfinite)
    featurizer.featurize((X, Y.int()), path, indices=range(N), **OPTIONS).close()
    assert len(watches) == 1
    assert set(watches[0].found) == {"aten::detach"}  # which is numpy(), and copies nothing


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_modes_of_the_caller(featurizer, path, mode):
    rows, values = featurizer.rows_and_values((X, Y))
    with mode(), featurizer.featurize((X.clone(), Y.clone()), path, **OPTIONS) as store:
        torch.testing.assert_close(store.torch(), rows, rtol=1e-5, atol=1e-6)
        assert np.array_equal(store.labels, Y.numpy())
        q = values.reweighting.numpy()
        np.testing.assert_allclose(store.column("reweighting"), q, rtol=1e-5)


def test_the_bar_counts_what_is_written_and_is_closed_after_it(featurizer, path, monkeypatch):
    events, left = [], threading.Event()
    write, batches = writing.RowWriter.write, iter(range(3))

    class Bar(writing.tqdm):
        def update(self, n):
            events.append(n)

        def close(self):
            events.append("closed")
            super().close()

    def write_late(writer, index, *rest):
        assert index[0] < SIZE or left.wait(PATIENCE)
        write(writer, index, *rest)

    def rows_and_values(batch):
        if next(batches) == 2:
            left.set()
            raise KeyboardInterrupt
        return make(batch)

    make = featurizer.rows_and_values
    featurizer.rows_and_values = rows_and_values
    monkeypatch.setattr(writing, "tqdm", Bar)
    monkeypatch.setattr(writing.RowWriter, "write", write_late)
    with pytest.raises(KeyboardInterrupt):
        featurizer.featurize((X, Y), path, **OPTIONS)
    assert events[:3] == [SIZE, SIZE, "closed"]


def test_rows_labels_and_reweighting(featurizer, path):
    rows, values = featurizer.rows_and_values((X, Y))
    with featurizer.featurize((X, Y), path, indices=range(N), **OPTIONS) as store:
        torch.testing.assert_close(store.torch(), rows, rtol=1e-5, atol=1e-6)
        assert np.array_equal(store.labels, Y.numpy())
        assert np.array_equal(store.column("indices"), np.arange(N))
        q = values.reweighting.numpy()
        np.testing.assert_allclose(store.column("reweighting"), q, rtol=1e-5)


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), OutOfMemoryError("of memory"), RuntimeError("CUDA"), DataError("bad")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches_before_an_error_are_written(featurizer, path, batch, error):
    raising_at(featurizer, batch, error)
    with pytest.raises(type(error)):
        featurizer.featurize((X, Y), path, **OPTIONS)
    with FeatureStore(path) as store:
        assert store.num_done == batch * SIZE
        assert np.array_equal(store.labels[: batch * SIZE], Y[: batch * SIZE].numpy())


def test_errors_in_the_data_name_their_rows(featurizer, path):
    raising_at(featurizer, 2, DataError("a label is wrong"))
    with pytest.raises(DataError, match="in rows 10 to 14: a label is wrong"):
        featurizer.featurize((X, Y), path, **OPTIONS)


@pytest.mark.parametrize("bad", [0, 7, 22])
def test_rows_before_one_that_is_not_finite_are_written(model, path, bad):
    data = X.clone()
    data[bad] = float("nan")
    featurizer = Featurizer(model, proj_dim=64, check=False)
    with pytest.raises(NonFiniteError, match=f"the row of sample {bad} holds NaN or infinity"):
        featurizer.featurize(data, path, **OPTIONS)
    with FeatureStore(path) as store:
        assert store.num_done == bad // SIZE * SIZE


def test_the_earlier_of_two_errors_is_told(featurizer, path):
    data = X.clone()
    data[12] = float("nan")
    raising_at(featurizer, 3, DataError("later"))
    with pytest.raises(NonFiniteError, match="sample 12"):
        featurizer.featurize((data, Y), path, **OPTIONS)


def test_rows_are_skipped(model, path):
    data = X.clone()
    data[[3, 11, 22]] = float("inf")
    featurizer = Featurizer(model, proj_dim=64, check=False, on_nonfinite="skip")
    with featurizer.featurize(data, path, **OPTIONS) as store:
        assert store.complete and store.skipped.tolist() == [3, 11, 22]


def test_resuming(featurizer, path):
    whole = path.with_name("whole.h5")
    featurizer.featurize((X, Y), whole, **OPTIONS).close()
    original = featurizer.rows_and_values
    raising_at(featurizer, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        featurizer.featurize((X, Y), path, **OPTIONS)
    featurizer.rows_and_values = original
    featurizer.featurize((X, Y), path, **OPTIONS).close()
    with FeatureStore(path) as a, FeatureStore(whole) as b:
        assert a.complete and torch.equal(a.torch(), b.torch())


def test_a_disk_that_refuses_ends_it(featurizer, path, monkeypatch):
    def refuse(*args):
        raise StoreError("the disk refused the data")

    monkeypatch.setattr(writing.RowWriter, "write", refuse)
    with pytest.raises(StoreError, match="the disk refused") as found:
        featurizer.featurize((X, Y), path, **OPTIONS)
    assert "refuse" in [frame.name for frame in traceback.extract_tb(found.tb)]


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [False, True])
def test_the_gpu_writes_what_it_makes(model, path, pinned):
    featurizer = Featurizer(model.cuda(), "margin", proj_dim=64)
    rows, _ = featurizer.rows_and_values((X.cuda(), Y.cuda()))
    data = (X.pin_memory(), Y.pin_memory()) if pinned else (X, Y)
    with featurizer.featurize(data, path, **OPTIONS) as store:
        torch.testing.assert_close(store.torch(), rows.cpu(), rtol=1e-4, atol=1e-5)
        assert np.array_equal(store.labels, Y.numpy())
