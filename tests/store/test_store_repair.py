import pytest

from pntk.errors import StoreError
from pntk.store import FeatureStore, RowWriter, join, repair


def test_nothing_to_repair(full_store):
    before = full_store.read_bytes()
    assert repair(full_store).ok
    assert full_store.read_bytes() == before


def test_damaged_rows_become_missing_and_no_others(full_store, flip):
    flip(full_store, "features", 3)
    flip(full_store, "done", 5)
    report = repair(full_store)
    assert not report.ok and report.bad_rows == [3, 5]
    store = FeatureStore(full_store)
    assert store.done[[3, 5]].tolist() == [0, 0] and store.num_done == 8
    assert store.verify().ok and repair(full_store).ok


def test_of_joined_stores_the_files_are_repaired(tmp_path, make_store, flip):
    paths = [make_store(f"{name}.h5") for name in "abc"]
    joined = join(tmp_path / "joined.h5", paths)
    flip(paths[0], "labels", 9)
    flip(paths[2], "features", 0)
    before = joined.read_bytes(), paths[1].read_bytes()
    assert repair(joined).bad_rows == [9, 20]
    assert (joined.read_bytes(), paths[1].read_bytes()) == before
    missing = []
    for path in paths:
        with RowWriter.reopen(path) as writer:
            missing.append(writer.missing().tolist())
    assert missing == [[9], [], [0]]
    assert FeatureStore(joined).num_done == 28


def test_being_written(full_store, flip):
    flip(full_store, "features", 3)
    message = "another process is writing this file"
    with RowWriter.reopen(full_store), pytest.raises(StoreError, match=message):
        repair(full_store)


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        repair(tmp_path / "s.h5")
