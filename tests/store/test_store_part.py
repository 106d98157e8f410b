import io
import os

import h5py
import numpy as np
import pytest

from pntk.errors import StoreError
from pntk.store import part as part_module
from pntk.store.layout import text_checksum
from pntk.store.part import open_part

NAMES = ["features", "done", "checksums", "labels", "reweighting", "scales"]


@pytest.fixture
def part(make_store):
    return open_part(make_store("s.h5", dtype="float16", skipped=[7], missing=[9]))


def test_what_it_knows(part):
    found = part.path.stat()
    assert part.identity == (found.st_dev, found.st_ino)
    assert part.header_crc32 == text_checksum(part.layout.header.to_json())
    assert (part.start, part.stop) == (0, 10)
    assert open_part(part.path, 70).stop == 80


@pytest.mark.parametrize("name", NAMES)
def test_ranges(part, name):
    with h5py.File(part.path) as file:
        whole = file[name][:]
    for first in range(11):
        np.testing.assert_array_equal(part.read(name, first), whole[first:])
        for last in range(first, 11):
            found = part.read(name, first, last)
            assert found.dtype == whole.dtype
            np.testing.assert_array_equal(found, whole[first:last])
    assert part.read(name).shape == whole.shape


def test_into_an_array(part):
    whole = np.full((10, 6), np.nan, np.float16)
    assert part.read("features", 2, 5, out=whole[2:5]).base is whole
    np.testing.assert_array_equal(whole[2:5], part.read("features", 2, 5))
    assert np.isnan(whole[[0, 1, 5, 6, 7, 8, 9]]).all()


def test_arrays_are_new(part):
    part.read("labels").fill(-7)
    assert (part.read("labels") != -7).all()


def test_reads_that_end_early(part, monkeypatch):
    expected = part.read("features")

    class Slow(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(buffer[:7])

    monkeypatch.setattr(part_module, "open", lambda path, *_, **__: Slow(path), raising=False)
    np.testing.assert_array_equal(part.read("features"), expected)


def test_truncated_since(part):
    extent = part.layout.extents["features"]
    with open(part.path, "r+b") as file:
        file.truncate(extent.offset + 3 * extent.row_bytes + 1)
    assert part.read("features", 0, 3).shape == (3, 6)
    for first in (3, 5):
        with pytest.raises(StoreError, match=r"s.h5: the file has been truncated since it was op"):
            part.read("features", first, first + 1)


def test_replaced_since(part):
    copy = part.path.with_name("copy.h5")
    copy.write_bytes(part.path.read_bytes())
    os.replace(copy, part.path)
    with pytest.raises(StoreError, match=r"s.h5: was replaced since it was opened; open it again"):
        part.read("labels")


def test_gone_since(part):
    part.path.unlink()
    with pytest.raises(StoreError, match=r"s.h5: cannot be read \(No such file"):
        part.read("labels")


def test_disk_that_fails(part, monkeypatch):
    def refuse(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(part_module, "open", refuse, raising=False)
    with pytest.raises(StoreError, match=r"s.h5: cannot be read \(Input/output error\)"):
        part.read("features")
