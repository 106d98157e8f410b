"""A store holds the same rows whether they are written at once or one batch behind."""

import numpy as np
import pytest
import torch
from torch import nn

from pntk import FeatureStore, Featurizer, writing
from pntk.errors import DataError, NonFiniteError, OutOfMemoryError, StoreError
from pntk.staging import DEPTH

N, SIZE = 23, 5
X, Y = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3
OPTIONS = {"batch_size": SIZE, "progress": False}


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


@pytest.fixture(params=["at once", "one behind"], autouse=True)
def way(request, monkeypatch):
    if request.param == "one behind":
        monkeypatch.setattr(writing, "slots_for", lambda device: [LateSlot() for _ in range(DEPTH)])
    return request.param


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
        assert store.done.sum() == batch * SIZE
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
    with pytest.raises(StoreError, match="the disk refused"):
        featurizer.featurize((X, Y), path, **OPTIONS)


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [False, True])
def test_the_gpu_writes_what_it_makes(model, path, pinned):
    featurizer = Featurizer(model.cuda(), "margin", proj_dim=64)
    rows, _ = featurizer.rows_and_values((X.cuda(), Y.cuda()))
    data = (X.pin_memory(), Y.pin_memory()) if pinned else (X, Y)
    with featurizer.featurize(data, path, **OPTIONS) as store:
        torch.testing.assert_close(store.torch(), rows.cpu(), rtol=1e-4, atol=1e-5)
        assert np.array_equal(store.labels, Y.numpy())
