import errno
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from pntk.errors import StoreError
from pntk.store import FeatureStore, RowWriter, StoreHeader
from pntk.store import create as create_module
from pntk.store import layout as layout_module
from pntk.store.create import create_file
from pntk.store.header import explain_difference
from pntk.store.layout import ALIGNMENT, header_checksum, read_layout

Usage = namedtuple("Usage", "total used free")


def edit(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value


def replace_dataset(path: Path, name: str, **how: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, **how)


# --- header


def test_header_survives_json(make_header):
    header = make_header(projection={"shape": (1, 2), "seed": 2**63}, info={"a": None})
    assert header.projection["shape"] == [1, 2]
    assert StoreHeader.from_json(header.to_json()) == header


def test_columns_are_kept_in_alphabetical_order(make_header):
    header = make_header(columns={"zeta": "uint8", "alpha": "int64"})
    assert list(header.columns) == ["alpha", "zeta"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows is 0, expected an integer of at least 1"),
        ({"rows": True}, "rows is True"),
        ({"width": 2.0}, "width is 2.0"),
        ({"dtype": "float16"}, "dtype is 'float16', expected one of"),
        ({"weights": None}, "weights is None, expected a string"),
        ({"precision": 1}, "precision is 1, expected a string"),
        ({"projection": []}, "projection is .* expected a dictionary"),
        ({"output": {"f": print}}, "output cannot be written as JSON"),
        ({"info": {"x": float("nan")}}, "info cannot be written as JSON"),
        ({"params": (1, 2)}, "params must be pairs"),
        ({"params": (("w", ("a",)),)}, "params has .* expected a name and a shape"),
        ({"columns": ["labels"]}, "columns is .* expected a dictionary"),
        ({"columns": {"a/b": "int64"}}, "column 'a/b': use letters"),
        ({"columns": {"done": "uint8"}}, "'done': this name is taken"),
        ({"columns": {"labels": "complex64"}}, "'labels' is 'complex64', use one of"),
    ],
)
def test_header_refuses(make_header, changes, message):
    with pytest.raises(StoreError, match=message):
        make_header(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "missing fields"),
        ('{"rows": 1}', "missing fields .*'width'"),
    ],
)
def test_header_refuses_bad_json(text, message):
    with pytest.raises(StoreError, match=message):
        StoreHeader.from_json(text)


def test_header_refuses_unknown_fields(make_header):
    text = make_header().to_json().replace("{", '{"tomorrow": 1, ', 1)
    with pytest.raises(StoreError, match=r"unknown fields \['tomorrow'\]"):
        StoreHeader.from_json(text)


def test_difference_names_the_fields(make_header):
    ours = make_header(projection={"seed": 0, "a": 1}, width=6)
    theirs = make_header(projection={"seed": 1}, width=7, columns={}, info={"pntk": "9"})
    assert ours.difference(theirs) == [
        ("width", 6, 7),
        ("projection.a", 1, "absent"),
        ("projection.seed", 0, 1),
        ("columns.labels", "int64", "absent"),
        ("columns.reweighting", "float32", "absent"),
    ]
    assert ours.difference(ours) == []


def test_difference_of_params_names_the_first_only(make_header):
    params = tuple((f"p{i}", (i,)) for i in range(100))
    changed = (*params[:40], ("other", (1, 2)), *params[41:])
    ours, theirs = make_header(params=params), make_header(params=changed)
    assert ours.difference(theirs) == [
        ("params", "p40 [40] (parameter 41 of 100)", "other [1, 2] (parameter 41 of 100)")
    ]
    [(_, fewer, _)] = make_header(params=params[:3]).difference(ours)
    assert fewer == "3 parameters"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 12}, "data set's length has changed: the file has 10 rows, now 12"),
        ({"weights": "cd"}, "model's weights differ .* 'ab12' in the file, 'cd' now"),
        ({"precision": "bf16"}, "precision is 'float32' in the file, 'bf16' was asked for"),
        ({"rows": 9, "weights": "cd"}, r"also different: weights\)"),
    ],
)
def test_explanation(make_header, changes, message):
    different = make_header(**changes).difference(make_header())
    with pytest.raises(StoreError, match=message + r".* Use the file's settings"):
        raise StoreError(explain_difference(different))


# --- creation


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 8), (4096, 1), (1000, 37)])
def test_datasets_are_aligned_and_do_not_overlap(tmp_path, make_header, rows, width):
    path = tmp_path / "s.h5"
    assert create_file(path, make_header(rows=rows, width=width))
    layout = read_layout(path)
    spans = sorted((e.offset, e.offset + e.nbytes) for e in layout.extents.values())
    assert all(start % ALIGNMENT == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert layout.size == path.stat().st_size


def test_space_is_reserved(tmp_path, make_header):
    path = tmp_path / "s.h5"
    create_file(path, make_header(rows=1000, width=1000))
    assert path.stat().st_blocks * 512 >= 4_000_000


def test_header_of_any_length(tmp_path, make_header):
    params = tuple((f"layer.{i}.weight", (64, 64)) for i in range(5000))
    create_file(tmp_path / "s.h5", make_header(params=params))
    assert read_layout(tmp_path / "s.h5").header.params == params


def test_creation_leaves_a_file_made_meanwhile(full_store, make_header):
    before = full_store.read_bytes()
    assert not create_file(full_store, make_header(width=9))
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
    assert read_layout(tmp_path / "s.h5").header == make_header()


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


@pytest.mark.parametrize("step", ["_write_hdf5", "_reserve"])
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


# --- files that are no store


def test_no_file(tmp_path):
    with pytest.raises(StoreError, match="no such file; featurize makes it"):
        FeatureStore(tmp_path / "s.h5")


def test_directory(tmp_path, make_header):
    with pytest.raises(StoreError, match=r"is a directory, expected one file; try .*rows.h5"):
        FeatureStore(tmp_path)
    with pytest.raises(StoreError, match="is a directory"):
        RowWriter.open(tmp_path, make_header())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="not a regular file"):
        FeatureStore(tmp_path / "pipe")


def test_unreadable_file(full_store):
    with pytest.raises(StoreError, match="cannot be read"):
        FeatureStore(full_store / "below-a-file")


@pytest.mark.parametrize("start", [b"", b"\x89H", b"not HDF5 at all"])
def test_not_hdf5(tmp_path, make_header, start):
    path = tmp_path / "s.h5"
    path.write_bytes(start)
    with pytest.raises(StoreError, match="is not an HDF5 file"):
        FeatureStore(path)
    with pytest.raises(StoreError, match="is not an HDF5 file"):
        RowWriter.open(path, make_header())
    assert path.read_bytes() == start


def test_foreign_hdf5(tmp_path, make_header):
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((10, 6), np.float32)
    with pytest.raises(StoreError, match=r"not a pntk store .*'format' is None"):
        FeatureStore(path)
    with pytest.raises(StoreError, match="not a pntk store"):
        RowWriter.open(path, make_header())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", 7, "'format' is 7, expected 'pntk-store'"),
        ("format", np.zeros(3), "'format' is None"),
        ("format", np.array("pntk-store", h5py.string_dtype()), "'format' is None"),
        ("format_version", 2, "format version 2, this pntk reads version 1"),
        ("format_version", "1", "format version '1'"),
        ("checksum", "xxh3", "checksum 'xxh3', this pntk knows 'crc32'"),
        ("header", "{}", "the header is damaged"),
        ("header", 5, "the header is damaged"),
        ("header_crc32", 5, "the header is damaged"),
    ],
)
def test_attributes(full_store, name, value, message):
    edit(full_store, name, value)
    with pytest.raises(StoreError, match=message):
        FeatureStore(full_store)


def test_header_with_a_right_checksum_and_wrong_content(full_store):
    edit(full_store, "header", "{}")
    edit(full_store, "header_crc32", header_checksum("{}"))
    with pytest.raises(StoreError, match=r"full.h5: header: missing fields"):
        FeatureStore(full_store)


@pytest.mark.parametrize(
    "how",
    [
        {"data": np.zeros((10, 6), "<f4"), "chunks": (1, 6)},
        {"shape": (10, 6), "dtype": "<f4", "external": [("raw.bin", 0, 240)]},
    ],
)
def test_features_must_be_contiguous(full_store, how):
    replace_dataset(full_store, "features", **how)
    with pytest.raises(StoreError, match="'features' is not contiguous"):
        FeatureStore(full_store)


def test_virtual_features_are_refused(full_store, make_header):
    virtual = h5py.VirtualLayout((10, 6), "<f4")
    virtual[:] = h5py.VirtualSource("shard.h5", "features", (10, 6))
    with h5py.File(full_store, "r+") as file:
        del file["features"]
        file.create_virtual_dataset("features", virtual)
    with pytest.raises(StoreError, match="'features' is not contiguous"):
        FeatureStore(full_store)
    with pytest.raises(StoreError, match="'features' is not contiguous"):
        RowWriter.open(full_store, make_header())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((10, 6), ">f4"), "'features' is >f4"),
        (np.zeros((10, 6), "<f8"), "'features' is float64"),
        (np.zeros((10, 5), "<f4"), r"\(10, 5\), the header says float32 \(10, 6\)"),
    ],
)
def test_features_must_be_what_the_header_says(full_store, data, message):
    replace_dataset(full_store, "features", data=data)
    with pytest.raises(StoreError, match=message):
        FeatureStore(full_store)


def test_datasets_without_space(full_store):
    replace_dataset(full_store, "done", shape=(10,), dtype="u1")
    with pytest.raises(StoreError, match="no aligned space"):
        FeatureStore(full_store)


def test_missing_dataset_and_links(full_store):
    with h5py.File(full_store, "r+") as file:
        del file["labels"]
    with pytest.raises(StoreError, match="no dataset 'labels'"):
        FeatureStore(full_store)
    with h5py.File(full_store, "r+") as file:
        file["labels"] = h5py.ExternalLink("other.h5", "labels")
    with pytest.raises(StoreError, match="no dataset 'labels'"):
        FeatureStore(full_store)


def test_truncated_at_any_length(full_store, make_header):
    whole = full_store.read_bytes()
    lengths = [9, 50, 100, 1000, 4096, 12_288, 12_300, len(whole) // 2, len(whole) - 1]
    for length in lengths:
        full_store.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="truncated"):
            FeatureStore(full_store)
        with pytest.raises(StoreError, match="truncated"):
            RowWriter.open(full_store, make_header())


def test_truncated_where_hdf5_does_not_notice(full_store, monkeypatch):
    """Older releases of HDF5 accept a dataset that reaches past the end of the file."""
    read = layout_module._read_extent

    def read_too_far(path, file, name, shape, dtype):
        extent = read(path, file, name, shape, dtype)
        return replace(extent, offset=extent.offset + 4) if name == "reweighting" else extent

    monkeypatch.setattr(layout_module, "_read_extent", read_too_far)
    with pytest.raises(StoreError, match=r"truncated: [\d,]+ bytes long, its datasets end at"):
        FeatureStore(full_store)


def test_damaged_metadata_is_never_anything_but_a_store_error(full_store):
    whole = full_store.read_bytes()
    random = np.random.default_rng(0)
    before_rows = whole[: read_layout(full_store).extents["features"].offset]
    used = np.flatnonzero(np.frombuffer(before_rows, np.uint8))
    for place in random.choice(used, 150):
        content = bytearray(whole)
        content[place] ^= 1 << random.integers(8)
        full_store.write_bytes(content)
        try:
            FeatureStore(full_store).close()
        except StoreError:
            continue
