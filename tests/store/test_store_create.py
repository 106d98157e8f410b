import errno
import os
import shutil
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import h5py
import pytest

from pntk.errors import StoreError
from pntk.store import FeatureStore, RowWriter
from pntk.store import create as create_module
from pntk.store.create import create_file, create_store
from pntk.store.layout import ALIGNMENT
from pntk.store.part import open_part

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 8), (4096, 1), (1000, 37)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_datasets_are_aligned_and_do_not_overlap(tmp_path, make_header, rows, width, dtype):
    path = tmp_path / "s.h5"
    assert create_store(path, make_header(rows=rows, width=width, dtype=dtype))
    layout = open_part(path).layout
    spans = sorted((e.offset, e.offset + e.nbytes) for e in layout.extents.values())
    assert all(start % ALIGNMENT == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert layout.size == path.stat().st_size


def test_space_is_reserved(tmp_path, make_header):
    path = tmp_path / "s.h5"
    create_store(path, make_header(rows=1000, width=1000))
    assert path.stat().st_blocks * 512 >= 4_000_000


def test_header_of_any_length(tmp_path, make_header):
    params = tuple((f"layer.{i}.weight", (64, 64)) for i in range(5000))
    create_store(tmp_path / "s.h5", make_header(params=params))
    assert open_part(tmp_path / "s.h5").layout.header.params == params


def test_creation_leaves_a_file_made_meanwhile(full_store, make_header):
    before = full_store.read_bytes()
    assert not create_store(full_store, make_header(width=9))
    assert full_store.read_bytes() == before
    assert os.listdir(full_store.parent) == ["full.h5"]


def test_creation_takes_over_what_a_kill_left(tmp_path, make_header):
    (tmp_path / "s.h5.creating").write_bytes(b"rubbish" * 10_000)
    RowWriter.open(tmp_path / "s.h5", make_header()).close()
    assert os.listdir(tmp_path) == ["s.h5"]
    assert FeatureStore(tmp_path / "s.h5").num_done == 0


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_an_error_before_any_work(tmp_path, make_header, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full_disk, raising=False)
    with pytest.raises(StoreError, match=r"needs [\d,]+ bytes and [\d,]+ bytes are available"):
        RowWriter.open(tmp_path / "s.h5", make_header())
    assert os.listdir(tmp_path) == []


def test_too_little_free_space(tmp_path, make_header, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9999, 9899, 100))
    with pytest.raises(StoreError, match=r"needs 4,210 bytes and 100 bytes are available in"):
        RowWriter.open(tmp_path / "s.h5", make_header(width=100))
    assert os.listdir(tmp_path) == []


def test_without_fallocate_free_space_is_checked(tmp_path, make_header, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    RowWriter.open(tmp_path / "s.h5", make_header()).close()
    answers = iter([10**9, 100])  # the second question comes after HDF5 has written
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, next(answers)))
    with pytest.raises(StoreError, match=r"and 100 bytes are available"):
        RowWriter.open(tmp_path / "t.h5", make_header())
    assert os.listdir(tmp_path) == ["s.h5"]


def test_file_system_that_cannot_reserve(tmp_path, make_header, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    RowWriter.open(tmp_path / "s.h5", make_header()).close()
    assert open_part(tmp_path / "s.h5").layout.header == make_header()


def test_file_size_limit(tmp_path, make_header):
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(StoreError, match=r"s.h5: cannot be created .*large"):
            RowWriter.open(tmp_path / "s.h5", make_header(rows=1000, width=1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert os.listdir(tmp_path) == []


def write_x(file):
    file["x"] = 1


def broken(file):
    raise ValueError("no such thing")


def test_any_file(tmp_path):
    path = tmp_path / "x.h5"
    assert create_file(path, write_x)
    with h5py.File(path) as file:
        assert file["x"][()] == 1
    assert os.listdir(tmp_path) == ["x.h5"]


def test_replacing_is_asked_for(full_store):
    before = full_store.read_bytes()
    assert not create_file(full_store, write_x)
    assert full_store.read_bytes() == before
    assert create_file(full_store, write_x, replace=True)
    with h5py.File(full_store) as file:
        assert list(file) == ["x"]


def test_failure_leaves_what_was_there(full_store):
    before = full_store.read_bytes()
    with pytest.raises(StoreError, match=r"full.h5: cannot be created \(no such thing\)"):
        create_file(full_store, broken, replace=True)
    assert full_store.read_bytes() == before
    assert os.listdir(full_store.parent) == ["full.h5"]


def test_what_is_needed_must_be_free(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9999, 9899, 100))
    with pytest.raises(StoreError, match="needs 101 bytes and 100 bytes are available"):
        create_file(tmp_path / "x.h5", broken, 101)


@pytest.mark.parametrize("step", ["allocate", "_reserve"])
def test_interrupt_leaves_nothing(tmp_path, make_header, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(create_module, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        RowWriter.open(tmp_path / "s.h5", make_header())
    assert os.listdir(tmp_path) == []


def test_missing_parent(tmp_path, make_header):
    with pytest.raises(StoreError, match=r"directory .*nowhere does not exist; create it first"):
        RowWriter.open(tmp_path / "nowhere" / "s.h5", make_header())


def test_parent_that_is_a_file(full_store, make_header):
    with pytest.raises(StoreError, match="cannot create a file in"):
        RowWriter.open(full_store / "s.h5", make_header())


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs sysfs")
def test_parent_that_refuses_even_root(make_header):
    with pytest.raises(StoreError, match="cannot create a file in /sys/kernel"):
        RowWriter.open("/sys/kernel/s.h5", make_header())


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_read_only_directory(tmp_path, make_header):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"cannot create a file .* can be written to"):
            RowWriter.open(tmp_path / "s.h5", make_header())
    finally:
        tmp_path.chmod(0o700)
