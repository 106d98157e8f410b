import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pntk.errors import StoreError
from pntk.store import FeatureStore, RowWriter
from pntk.store import hdf5 as hdf5_module
from pntk.store.layout import text_checksum
from pntk.store.part import open_part


def replace_dataset(path: Path, name: str, **how: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, **how)


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
    with pytest.raises(StoreError, match="not a pntk store"):
        RowWriter.reopen(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", 7, "'format' is 7, expected 'pntk-store'"),
        ("format", np.zeros(3), "'format' is None"),
        ("format", np.array("pntk-store", h5py.string_dtype()), "'format' is None"),
        ("format_version", 3, "version 3, this pntk reads version 2; upgrade pntk$"),
        ("format_version", 1, "version 1, this pntk reads version 2; make it again, or use the pn"),
        ("format_version", "3", "version '3', this pntk reads version 2; make it again"),
        ("checksum", "xxh4", "checksum 'xxh4', this pntk knows 'xxh3_64'; upgrade it"),
        ("checksum", 64, "checksum 64, this pntk knows"),
        ("header", "{}", "the header is damaged"),
        ("header", 5, "the header is damaged"),
        ("header_crc32", 5, "the header is damaged"),
    ],
)
def test_attributes(full_store, make_header, edit, name, value, message):
    edit(full_store, name, value)
    with pytest.raises(StoreError, match=message):
        FeatureStore(full_store)
    with pytest.raises(StoreError, match=message):
        RowWriter.open(full_store, make_header())


def test_header_with_a_right_checksum_and_wrong_content(full_store, edit):
    edit(full_store, "header", "{}")
    edit(full_store, "header_crc32", text_checksum("{}"))
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
    read = hdf5_module.read_extent

    def read_too_far(path, file, name, shape, dtype):
        extent = read(path, file, name, shape, dtype)
        return replace(extent, offset=extent.offset + 4) if name == "reweighting" else extent

    monkeypatch.setattr(hdf5_module, "read_extent", read_too_far)
    with pytest.raises(StoreError, match=r"truncated: [\d,]+ bytes long, its datasets end at"):
        FeatureStore(full_store)


def test_damaged_metadata_is_never_anything_but_a_store_error(full_store):
    whole = full_store.read_bytes()
    random = np.random.default_rng(0)
    before_rows = whole[: open_part(full_store).layout.extents["features"].offset]
    used = np.flatnonzero(np.frombuffer(before_rows, np.uint8))
    for place in random.choice(used, 150):
        content = bytearray(whole)
        content[place] ^= 1 << random.integers(8)
        full_store.write_bytes(content)
        try:
            FeatureStore(full_store).close()
        except StoreError:
            continue
