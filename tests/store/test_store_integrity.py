import doctest
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pntk.store import FeatureStore, RowWriter, VerifyReport
from pntk.store.integrity import row_checksums
from pntk.store.layout import read_layout

DOC = Path(__file__).parents[2] / "docs" / "store-format.md"


def flip(path: Path, name: str, row: int, bit: int = 0, byte: int = 0) -> None:
    extent = read_layout(path).extents[name]
    content = bytearray(path.read_bytes())
    content[extent.offset + row * extent.row_bytes + byte] ^= 1 << bit
    path.write_bytes(content)


@given(
    index=st.integers(0, 2**62),
    done=st.integers(1, 2),
    row=st.lists(st.floats(width=32), min_size=1, max_size=9),
    label=st.integers(-1, 2**62),
    weight=st.floats(width=32),
)
def test_checksum_is_crc32_of_the_bytes(index, done, row, label, weight):
    content = struct.pack("<qB", index, done) + struct.pack(f"<{len(row)}f", *row)
    content += struct.pack("<q", label) + struct.pack("<f", weight)
    columns = {"reweighting": np.array([weight], "<f4"), "labels": np.array([label], "<i8")}
    found = row_checksums(
        np.array([index]), np.array([done], np.uint8), np.array([row], "<f4"), columns
    )
    assert found.tolist() == [zlib.crc32(content)]


def test_clean_store(full_store):
    report = FeatureStore(full_store).verify()
    assert report == VerifyReport(ok=True, rows_checked=10, missing=0, skipped=1)
    assert str(report) == "ok: 10 rows checked, 0 bad, 0 missing, 1 skipped"


@pytest.mark.parametrize("name", ["features", "labels", "reweighting", "checksums"])
@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("row", [0, 7, 9])
def test_a_flipped_bit_is_found(full_store, name, bit, row):
    flip(full_store, name, row, bit)
    report = FeatureStore(full_store).verify()
    assert not report.ok and report.bad_rows == [row]
    assert report.messages[0].startswith(f"row {row}: checksum is 0x")
    assert str(report).startswith("DAMAGED: 10 rows checked, 1 bad, 0 missing, 1 skipped\nrow ")


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("row", [0, 7])
def test_a_flipped_bit_in_done(full_store, bit, row):
    state = 2 if row == 7 else 1
    flip(full_store, "done", row, bit)
    report = FeatureStore(full_store).verify()
    if state ^ 1 << bit == 0:  # then the row is simply computed again
        assert report.ok and report.missing == 1
    else:
        assert report.bad_rows == [row]
        assert (f"row {row}: done is {state ^ 1 << bit}, " in str(report)) == (state ^ 1 << bit > 2)


def test_rows_in_the_wrong_place_are_found(full_store):
    layout = read_layout(full_store)
    content = bytearray(full_store.read_bytes())
    for extent in layout.extents.values():
        size, start = extent.row_bytes, extent.offset
        first, second = content[start : start + size], content[start + size : start + 2 * size]
        content[start : start + 2 * size] = second + first
    full_store.write_bytes(content)
    assert FeatureStore(full_store).verify().bad_rows == [0, 1]


def test_bad_rows_can_be_repaired(full_store, make_header, values):
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
    layout = read_layout(path)
    content = bytearray(path.read_bytes())
    start = layout.extents["features"].offset
    content[start : start + 50 * 24] = bytes(50 * 24)
    path.write_bytes(content)
    report = FeatureStore(path).verify()
    assert report.bad_rows == list(range(50)) and report.missing == 10
    assert len(report.messages) == 21 and report.messages[-1] == "and 30 more bad rows"


def test_progress(full_store, capsys):
    assert FeatureStore(full_store).verify(progress=True).ok
    assert "verify" in capsys.readouterr().err


def test_the_worked_example_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testfile(str(DOC), module_relative=False, encoding="utf-8")
    assert outcome.attempted > 10 and outcome.failed == 0
    if h5py.version.hdf5_version_tuple[:2] == (2, 0):
        extents = read_layout(tmp_path / "tiny.h5").extents
        for name, extent in extents.items():
            assert f"| `{name}` | {extent.offset:,} | " in DOC.read_text(encoding="utf-8")
