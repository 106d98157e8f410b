import doctest
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from pntk.store import FeatureStore, RowWriter, VerifyReport
from pntk.store.integrity import row_checksums
from pntk.store.part import open_part

DOC = Path(__file__).parents[2] / "docs" / "store-format.md"


@given(
    index=st.integers(0, 2**62),
    done=st.sampled_from([0x55, 0xAA]),
    row=st.lists(st.floats(width=32), min_size=1, max_size=9),
    label=st.integers(-1, 2**62),
    weight=st.floats(width=32),
)
def test_checksum_is_xxh3_of_the_bytes(index, done, row, label, weight):
    about = struct.pack("<qBqf", index, done, label, weight)  # columns by name
    content = struct.pack(f"<{len(row)}f", *row)
    columns = {"reweighting": np.array([weight], "<f4"), "labels": np.array([label], "<i8")}
    found = row_checksums(
        np.array([index]), np.array([done], np.uint8), np.array([row], "<f4"), columns
    )
    assert found.dtype == np.uint64
    assert found.tolist() == [xxh3_64_intdigest(content, seed=xxh3_64_intdigest(about))]


def test_known_checksums():
    """Files that exist hold these: they may not change under the name xxh3_64."""
    rows = np.arange(6, dtype="<f4").reshape(2, 3)
    done = np.array([0x55, 0xAA], np.uint8)
    cells = {"labels": np.array([-1, 5], "<i8")}
    found = row_checksums(np.array([0, 2**40]), done, rows, cells)
    assert [f"{value:#x}" for value in found] == ["0xd858073752d61f1d", "0x76bbd13ba638bdab"]


def test_no_rows_no_checksums():
    none = np.empty(0, np.uint8)
    found = row_checksums(none.astype(np.int64), none, np.empty((0, 3), "<f4"), {"labels": none})
    assert (found.shape, found.dtype) == ((0,), np.uint64)


def test_clean_store(full_store):
    report = FeatureStore(full_store).verify()
    assert report == VerifyReport(ok=True, rows_checked=10, missing=0, skipped=1)
    assert str(report) == "ok: 10 rows checked, 0 bad, 0 missing, 1 skipped"


@pytest.mark.parametrize("name", ["features", "labels", "reweighting", "checksums", "scales"])
@pytest.mark.parametrize("row", [0, 7, 9])
def test_a_flipped_bit_is_found(make_store, flip, name, row):
    dtype = "float16" if name == "scales" else "float32"
    path = make_store("s.h5", skipped=[7], dtype=dtype)
    for bit in range(8):
        flip(path, name, row, bit)
        report = FeatureStore(path).verify()
        assert not report.ok and report.bad_rows == [row]
        assert report.messages[0].startswith(f"row {row}: checksum is 0x")
        assert str(report).startswith("DAMAGED: 10 rows checked, 1 bad, 0 missing, 1 skipped\nrow")
        flip(path, name, row, bit)
    assert FeatureStore(path).verify().ok


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize(("row", "state"), [(0, 0x55), (4, 0x00), (7, 0xAA)])
def test_a_flipped_bit_in_done(make_store, flip, bit, row, state):
    """It makes a row neither there nor missing: found, and made again on resuming."""
    path = make_store("s.h5", skipped=[7], missing=[4])
    flip(path, "done", row, bit)
    store = FeatureStore(path)
    report = store.verify()
    assert report.bad_rows == [row] and not report.ok
    assert report.messages == [f"row {row}: done is {state ^ 1 << bit}, expected 0, 85 or 170"]
    missing = sorted({4, row})
    assert report.rows_checked == store.num_done == 10 - len(missing)
    assert report.missing == (row != 4)
    with RowWriter.reopen(path) as writer:
        assert writer.missing().tolist() == missing


def test_a_state_that_passes_for_another_is_found(make_store, flip):
    """Four bits at once: the checksum covers the state."""
    path = make_store("s.h5", skipped=[7])
    for row in (3, 7):
        for bit in range(8):
            flip(path, "done", row, bit)
    assert FeatureStore(path).verify().bad_rows == [3, 7]


def test_rows_in_the_wrong_place_are_found(full_store):
    layout = open_part(full_store).layout
    content = bytearray(full_store.read_bytes())
    for extent in layout.extents.values():
        size, start = extent.row_bytes, extent.offset
        first, second = content[start : start + size], content[start + size : start + 2 * size]
        content[start : start + 2 * size] = second + first
    full_store.write_bytes(content)
    assert FeatureStore(full_store).verify().bad_rows == [0, 1]


def test_bad_rows_can_be_repaired(full_store, make_header, values, flip):
    rows, columns = values(make_header())
    before = full_store.read_bytes()
    flip(full_store, "features", 3)
    bad = FeatureStore(full_store).verify().bad_rows
    with RowWriter.open(full_store, make_header()) as writer:
        writer.forget(bad)
        writer.write(bad, rows[bad], {name: cells[bad] for name, cells in columns.items()})
    assert full_store.read_bytes() == before


def test_many_bad_rows_in_several_blocks(tmp_path, make_header, monkeypatch):
    monkeypatch.setattr("pntk.store.integrity._BLOCK_BYTES", 7 * 24)
    path = tmp_path / "s.h5"
    with RowWriter.open(path, make_header(rows=100, columns={})) as writer:
        writer.write(np.arange(90), np.ones((90, 6), np.float32))
    layout = open_part(path).layout
    content = bytearray(path.read_bytes())
    start = layout.extents["features"].offset
    content[start : start + 50 * 24] = bytes(50 * 24)
    path.write_bytes(content)
    report = FeatureStore(path).verify()
    assert report.bad_rows == list(range(50)) and report.missing == 10
    assert len(report.messages) == 21 and report.messages[-1] == "and 30 more bad rows"


def test_no_row_is_there(make_store):
    report = FeatureStore(make_store("s.h5", missing=range(10))).verify()
    assert report == VerifyReport(ok=True, rows_checked=0, missing=10, skipped=0)


def test_progress(full_store, capsys):
    assert FeatureStore(full_store).verify(progress=True).ok
    assert "verify" in capsys.readouterr().err


def test_the_worked_example_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testfile(str(DOC), module_relative=False, encoding="utf-8")
    assert outcome.attempted > 10 and outcome.failed == 0
    if h5py.version.hdf5_version_tuple[:2] == (2, 0):
        extents = open_part(tmp_path / "tiny.h5").layout.extents
        for name, extent in extents.items():
            assert f"| `{name}` | {extent.offset:,} | " in DOC.read_text(encoding="utf-8")
