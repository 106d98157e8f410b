"""A data set in shards, written one by one, or by any number of ranks in turn."""

from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from pntk import FeatureStore, Featurizer
from pntk.errors import ConfigError, DistributedError, NonFiniteError, StoreError
from pntk.sharding import assign, featurize_shards, make_plan
from pntk.store import RowWriter, join, repair
from pntk.store.shards import find_shards, shard_path

N = 23
X, Y = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3
QUIET = {"progress": False, "batch_size": 4}


@pytest.fixture
def featurizer():
    torch.manual_seed(0)
    return Featurizer(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), proj_dim=64)


@pytest.fixture
def whole(featurizer, tmp_path):
    return featurizer.featurize((X, Y), tmp_path / "whole.h5", **QUIET)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.h5"


def same(store, whole):
    assert store.complete and store.verify().ok
    assert torch.equal(store.torch(), whole.torch())
    assert np.array_equal(store.labels, whole.labels)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_shards_one_by_one_make_the_whole(featurizer, whole, path, count):
    for i in reversed(range(count)):
        store = featurizer.featurize((X, Y), path, shard=(i, count), **QUIET)
        assert store.path == shard_path(path, i, count)
        assert store.header.shard.start % 4 == 0
    same(FeatureStore(join(path)), whole)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_one_process_writes_all_shards(featurizer, whole, path, count):
    store = featurizer.featurize((X, Y), path, shards=count, **QUIET)
    assert store.files == [shard_path(path, i, count) for i in range(count)]
    same(store, whole)
    before = path.read_bytes()
    same(featurizer.featurize((X, Y), path, **QUIET), whole)  # nothing to do
    assert path.read_bytes() == before


def test_shards_of_a_new_store_without_resuming(featurizer, whole, path):
    same(featurizer.featurize((X, Y), path, shards=2, resume=False, **QUIET), whole)


def test_a_path_without_a_suffix(featurizer, whole, tmp_path):
    for _ in range(2):
        same(featurizer.featurize((X, Y), tmp_path / "rows", shards=2, **QUIET), whole)


def test_what_the_shards_lack_is_made_and_nothing_else(featurizer, whole, path, monkeypatch):
    store = featurizer.featurize((X, Y), path, shards=3, **QUIET)
    with RowWriter.reopen(store.files[1]) as writer:
        writer.forget([2])
    store.files[2].unlink()
    made = []
    compute = Featurizer.rows_and_values
    monkeypatch.setattr(
        Featurizer, "rows_and_values", lambda f, b: made.append(len(b[0])) or compute(f, b)
    )
    same(featurizer.featurize((X, Y), path, **QUIET), whole)
    assert sorted(made) == [3, 4, 4]  # a batch of shard 1, and the two of shard 2


def test_an_interrupted_shard_goes_on(featurizer, whole, path):
    broken = X.clone()
    broken[14] = float("nan")
    with pytest.raises(NonFiniteError, match="sample 14 holds NaN"):
        featurizer.featurize((broken, Y), path, shards=2, **QUIET)
    first, second = (FeatureStore(file) for file in find_shards(path))
    assert first.complete and second.done.nonzero()[0].tolist() == []
    assert not path.exists()
    same(featurizer.featurize((X, Y), path, **QUIET), whole)


def test_damaged_rows_of_shards_are_repaired(featurizer, whole, path):
    store = featurizer.featurize((X, Y), path, shards=3, **QUIET)
    for file, row in ((store.files[0], 1), (store.files[2], 3)):
        with RowWriter.reopen(file) as writer:
            writer._view("features")[row] += 1
    assert repair(path).bad_rows == [1, 19]
    assert np.flatnonzero(FeatureStore(path).done == 0).tolist() == [1, 19]
    same(featurizer.featurize((X, Y), path, **QUIET), whole)


def test_indices_and_half_precision(featurizer, whole, path):
    numbers = np.arange(100, 100 + N)
    store = featurizer.featurize((X, Y), path, shards=2, storage="fp16", indices=numbers, **QUIET)
    assert store.column("indices").tolist() == numbers.tolist()
    assert store.header.dtype == "float16" and store.dtype == torch.float32
    error = (store.torch() - whole.torch()).abs()
    assert error.max() > 0
    assert bool((error <= whole.torch().abs() * 2**-11).all())
    same(featurizer.featurize((X, Y), path, storage="fp16", indices=numbers, **QUIET), store)


# ---- refusals, all of them before any row is made


@pytest.fixture
def no_rows(monkeypatch):
    """Fail as soon as a row is made."""

    def refuse(*_):
        raise AssertionError("work has begun")

    monkeypatch.setattr(Featurizer, "rows_and_values", refuse)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ((3, 3), r"shard 3/3: expected 0 to 2; shards are counted from 0"),
        ((-1, 3), r"shard -1/3: expected 0 to 2"),
        ((0, 7), r"7 shards of 23 rows in batches of 4; expected 1 to 6"),
        ((0, 0), r"shard 0/0: expected at least one shard"),
        ("0/3", r"shard is '0/3'; expected \(i, n\)"),
        ((0.0, 3), r"shard is \(0.0, 3\); expected \(i, n\)"),
        ((0, 1, 2), r"expected \(i, n\)"),
    ],
)
def test_no_such_shard(featurizer, path, no_rows, shard, message):
    with pytest.raises(ConfigError, match=message):
        featurizer.featurize((X, Y), path, shard=shard, **QUIET)


@pytest.mark.parametrize("count", [0, 7, True, "3", 2.0])
def test_no_such_number_of_shards(featurizer, path, no_rows, count):
    with pytest.raises(ConfigError, match="shards of 23 rows in batches of 4; expected 1 to 6"):
        featurizer.featurize((X, Y), path, shards=count, **QUIET)


def test_shard_beside_shards(featurizer, path, no_rows):
    with pytest.raises(ConfigError, match="a shard is for one process by itself"):
        featurizer.featurize((X, Y), path, shard=(0, 2), shards=2, **QUIET)


def test_another_number_of_shards(featurizer, path, monkeypatch):
    featurizer.featurize((X, Y), path, shards=2, **QUIET)
    with pytest.raises(ConfigError, match="was begun with 2 shards, 3 were asked for"):
        featurizer.featurize((X, Y), path, shards=3, **QUIET)


def test_shards_of_two_sets(featurizer, path):
    featurizer.featurize((X, Y), path, shard=(0, 2), **QUIET)
    featurizer.featurize((X, Y), path, shard=(0, 3), **QUIET)
    with pytest.raises(StoreError, match="there are shards of 2 and of 3; delete those of one set"):
        featurizer.featurize((X, Y), path, **QUIET)


def test_other_cuts_and_other_rows(featurizer, path):
    featurizer.featurize((X, Y), path, shards=2, **QUIET)
    with pytest.raises(
        StoreError, match=r"shard 1/2, rows 8 to 22 of 23 .*batch size decide where"
    ):
        featurizer.featurize((X, Y), path, progress=False, batch_size=8, shard=(1, 2))
    with pytest.raises(StoreError, match="shard 0/2, rows 0 to 11 of 23, asked was"):
        featurizer.featurize((X, Y), path, progress=False, batch_size=8)
    other = Featurizer(featurizer.model, proj_dim=64, seed=1)
    with pytest.raises(StoreError, match=r"rows.h5: cannot resume: projection.seed is 0 in"):
        other.featurize((X, Y), path, **QUIET)


def test_a_store_that_holds_its_rows_itself(featurizer, whole):
    with pytest.raises(StoreError, match="holds its rows itself and is not made of shards"):
        featurizer.featurize((X, Y), whole.path, shards=2, **QUIET)


def test_no_resume(featurizer, path):
    featurizer.featurize((X, Y), path, shard=(0, 2), **QUIET)
    with pytest.raises(StoreError, match="shards of it exist and resume=False"):
        featurizer.featurize((X, Y), path, resume=False, **QUIET)


def test_joined_from_elsewhere_is_not_written_to(featurizer, whole, path):
    join(path, [whole.path])
    with pytest.raises(StoreError, match="joins shards and holds no rows itself"):
        featurizer.featurize((X, Y), path, **QUIET)


def test_a_joined_store_of_others_is_not_replaced(featurizer, whole, path):
    join(path, [whole.path])
    before = path.read_bytes()
    with pytest.raises(StoreError, match="joins stores that are not shards of its own"):
        featurizer.featurize((X, Y), path, shards=2, **QUIET)
    other = Featurizer(featurizer.model, proj_dim=64, seed=1)
    with pytest.raises(StoreError, match=r"cannot resume: projection.seed is 0 in the file, 1 was"):
        other.featurize((X, Y), path, shards=2, **QUIET)
    assert path.read_bytes() == before


@pytest.mark.parametrize("storage", ["fp8", None, 16])
def test_unknown_storage(featurizer, path, no_rows, storage):
    with pytest.raises(ConfigError, match=r"storage is .*; expected one of full, fp16"):
        featurizer.featurize((X, Y), path, storage=storage, **QUIET)


def test_half_precision_of_float64(path, no_rows):
    double = Featurizer(nn.Linear(5, 3), proj_dim=64, precision="fp64")
    with pytest.raises(ConfigError, match="storage='fp16' is for rows of float32, these are"):
        double.featurize((X, Y), path, storage="fp16", **QUIET)


# ---- who does what


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_work_is_shared_out(ranks):
    missing = [5, 0, 9, 9, 1, 0, 4]
    work = assign(missing, ranks)
    assert sorted(chain(*work)) == [0, 2, 3, 4, 6] and len(work) == ranks
    load = [sum(missing[i] for i in shards) for shards in work]
    assert max(load) - min(load) <= max(missing)


@pytest.mark.parametrize(("ranks", "count"), [(1, 1), (4, 4), (40, 6)])
def test_a_shard_a_rank_but_none_without_a_batch(whole, path, ranks, count):
    plan = make_plan(path, whole.header, 4, None, ranks, resume=True)
    assert len(plan.files) == count and len(plan.work) == ranks


class Pretended:
    """Rank 1 of 2, where rank 0 has other weights."""

    rank, size = 1, 2

    def share(self, value):
        return value.replace('"weights": "', '"weights": "0')


def test_ranks_with_different_weights(featurizer, whole, path, monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr("pntk.sharding.processes", lambda: nullcontext(Pretended()))
    with pytest.raises(DistributedError, match=r"rank 1: weights is .* here and '0.* on rank 0"):
        featurize_shards(path, whole.header, 4, None, None, resume=True)
