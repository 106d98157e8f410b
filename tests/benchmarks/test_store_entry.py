"""What the store entry compares, and that it refuses a store that is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

import pntk.writing
from benchmarks import store
from benchmarks.registry import CheckFailed, Options
from pntk.store import FeatureStore

QUICK = Options(torch.device("cpu"), repeats=2, quick=True)
KIND = store.Kind(8, "float32")


def test_both_write_the_same_rows(tmp_path):
    sources = KIND.sources()
    rows = 3 * store.BATCH
    for write in (store.write_store, store.write_map):
        assert len(write(tmp_path / write.__name__, KIND, rows, sources)) == len(store.STAGES)
    written = FeatureStore(tmp_path / "write_store")
    assert written.verify().ok and written.complete
    assert np.array_equal(written.numpy(), np.concatenate(sources[:3]))
    mapped = np.fromfile(tmp_path / "write_map", np.float32).reshape(rows, 8)
    assert np.array_equal(mapped, written.numpy())


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("write_store", "rows against what was written"),
        ("write_map", "share of numbers unlike the map's"),
    ],
)
def test_a_wrong_file_is_refused(way, message, monkeypatch):
    right = getattr(store, way)

    def wrong(path, kind, rows, sources):
        return right(path, kind, rows, [source * 1.001 for source in sources])

    monkeypatch.setattr(store, way, wrong)
    with pytest.raises(CheckFailed, match=message):
        store._check(KIND)


def test_a_damaged_store_is_refused(monkeypatch):
    right = store.write_store

    def damage(path, *rest):
        spent = right(path, *rest)
        with open(path, "r+b") as file:
            file.seek(FeatureStore(path)._parts[0].layout.extents["features"].offset)
            file.write(b"\1")
        return spent

    monkeypatch.setattr(store, "write_store", damage)
    with pytest.raises(CheckFailed, match=r"verify\(\) refuses"):
        store._check(KIND)


def test_rounds_alternate_and_the_first_times_do_not_count(tmp_path):
    calls = []

    def way(name):
        def write(path: Path):
            assert not path.exists()
            path.write_bytes(b"x")
            calls.append(name)
            return (float(len(calls)), 10.0, 100.0)

        return write

    found = store.staged({"a": way("a"), "b": way("b")}, tmp_path, 2)
    assert "".join(calls) == "aabb" + "bbaa" + "aabb"
    assert found["a"].create == [8.0, 10.0] and found["b"].create == [6.0, 12.0]
    assert found["a"].seconds("create + write + flush") == [118.0, 120.0]
    assert not list(tmp_path.iterdir())


def test_rows_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "KINDS", [KIND, store.Kind(8, "float16")])
    monkeypatch.setattr(store.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(store, "SHM", tmp_path / "none")
    entry = store.Store()
    found = {row.case.split(", ", 1)[0]: row for row in entry.measure(QUICK)}
    assert set(found["write"].ratios) == {*store.STAGES, "all, fastest rounds"}
    assert {"read()", "read(), check=True", "verify()"} == set(found["read"].ratios)
    assert found["checksums"].values["us a row"].median > 0
    assert found["sync"].values["sync of 64 rows [ms]"].median > 0
    shares = found["ResNet18"].ratios
    assert 0 < shares["writer thread / featurize"].median < 1
    assert pntk.writing.Staging.__name__ == "Staging"  # as it was


def test_file_system_of_a_path():
    assert store.filesystem(Path("/proc/self")) in ("proc", "disk")
