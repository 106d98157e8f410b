"""Hostile files, made with care, and checksums that are right; see ``fuzz``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from benchmarks.reliability.bases import MAIN, NUMBERS, Place, Random, edit
from benchmarks.reliability.rehash import object_headers, rehash
from benchmarks.reliability.task import make_header
from pntk.store import Shard, StoreHeader
from pntk.store.create import allocate, describe_store
from pntk.store.layout import datasets, text_checksum


def rehashed(place: Place, random: Random) -> None:
    """Change metadata of HDF5 and make its checksums right again."""

    def change(content: bytearray) -> None:
        headers = object_headers(bytes(content))
        for _ in range(int(random.integers(1, 4))):
            start, stop = headers[random.integers(len(headers))]
            at = int(random.integers(start, stop))
            if random.random() < 0.5:
                content[at] ^= 1 << random.integers(8)
            else:
                size = min(int(random.choice([1, 2, 4, 8])), stop - at)
                value = int(random.choice(np.array(NUMBERS, dtype=object)))
                content[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
        rehash(content)

    edit(place, random, change)


def attribute(place: Place, random: Random) -> None:
    """Replace an attribute by one of another kind."""
    kinds: list[Any] = [
        None,
        7,
        -1,
        2**63 - 1,
        1.5,
        float("nan"),
        "text that is not of fixed length",
        np.bytes_(b""),
        np.bytes_(b"\xff\xfe\x00"),
        np.bytes_(b"pntk-store"),
        np.bytes_(b"x" * 60_000),
        np.zeros(3),
        np.zeros((2, 3), "i1"),
        np.zeros(2, [("a", "f4"), ("b", "i8")]),
        h5py.Empty("f4"),
        h5py.Empty("S10"),
        np.array(["a", "bc"], dtype=h5py.string_dtype()),
        np.bool_(True),
        np.complex64(1j),
    ]
    with h5py.File(place.main, "r+") as file:
        names = [*file.attrs, "shards", "shards_crc32"]
        for _ in range(int(random.integers(1, 3))):
            name = str(random.choice(names))
            if name in file.attrs:
                del file.attrs[name]
            value = kinds[random.integers(len(kinds))]
            if value is not None:
                file.attrs[name] = value


def dataset(place: Place, random: Random) -> None:
    """Replace a dataset by one of another kind, a link or a group."""
    makers: list[Callable[[h5py.File, str, Any, Any], object]] = [
        lambda f, name, shape, dtype: None,
        lambda f, name, shape, dtype: f.create_dataset(
            name, shape, dtype, chunks=(1,) * len(shape)
        ),
        lambda f, name, shape, dtype: f.create_dataset(
            name, shape, dtype, maxshape=(None,) * len(shape), compression="gzip"
        ),
        lambda f, name, shape, dtype: _compact(f, name, shape, dtype),
        lambda f, name, shape, dtype: f.create_dataset(
            name, shape, dtype, external=[(str(place.outside), 0, h5py.h5f.UNLIMITED)]
        ),
        lambda f, name, shape, dtype: _virtual(f, name, shape, dtype, place),
        lambda f, name, shape, dtype: f.__setitem__(name, h5py.SoftLink("/done")),
        lambda f, name, shape, dtype: f.__setitem__(name, h5py.SoftLink(f"/{name}")),
        lambda f, name, shape, dtype: f.__setitem__(
            name, h5py.ExternalLink(str(place.outside), name)
        ),
        lambda f, name, shape, dtype: f.create_group(name),
        lambda f, name, shape, dtype: f.__setitem__(name, np.dtype(dtype)),
        lambda f, name, shape, dtype: f.create_dataset(name, shape, ">f4"),
        lambda f, name, shape, dtype: f.create_dataset(name, shape, "i2"),
        lambda f, name, shape, dtype: f.create_dataset(name, shape, h5py.string_dtype()),
        lambda f, name, shape, dtype: f.create_dataset(name, shape, [("a", "f4"), ("b", "f4")]),
        lambda f, name, shape, dtype: f.create_dataset(name, data=h5py.Empty("f4")),
        lambda f, name, shape, dtype: f.create_dataset(name, (), dtype),
        lambda f, name, shape, dtype: f.create_dataset(name, (0, *shape[1:]), dtype),
        lambda f, name, shape, dtype: f.create_dataset(name, (*shape, 1), dtype),
        lambda f, name, shape, dtype: f.create_dataset(name, (2**40,) * len(shape), dtype),
        lambda f, name, shape, dtype: f.create_dataset(
            name, (2**60,), dtype, chunks=(2**10,), maxshape=(None,)
        ),
        lambda f, name, shape, dtype: f.create_dataset(name, shape, dtype),  # without space
    ]
    with h5py.File(place.main, "r+") as file:
        name = str(random.choice(sorted(file)))
        old = file[name]
        shape, dtype = old.shape, old.dtype
        del file[name]
        makers[random.integers(len(makers))](file, name, shape, dtype)


def _compact(file: h5py.File, name: str, shape: Any, dtype: Any) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_layout(h5d.COMPACT)
    h5d.create(file.id, name.encode(), h5t.py_create(dtype), h5s.create_simple(shape), plist)


def _virtual(file: h5py.File, name: str, shape: Any, dtype: Any, place: Place) -> None:
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(str(place.outside), "features", shape)
    file.create_virtual_dataset(name, layout)


def _set_text(path: Path, name: str, text: str) -> None:
    """Write a text and its checksum."""
    with h5py.File(path, "r+") as file:
        for old in (name, f"{name}_crc32"):
            if old in file.attrs:
                del file.attrs[old]
        file.attrs[name] = np.bytes_(text.encode("utf-8", "surrogatepass"))
        file.attrs[f"{name}_crc32"] = text_checksum(text.encode("utf-8", "replace").decode())


_ABSURD: list[Any] = [
    None, True, 0, -1, 1, 2, 11, 2**31, 2**40, 2**63, 2**64, 10**400, 1.5, 1e400, "", "x",
    "float32",
    "float16", "int64", "\0", "../..", [], [[]], {}, {"a": 1}, ["a", "b"], [["w", [1]]],
    [["w", [-1]]],
    [["w", [10**400]]], {"labels": "int64"}, {"labels": "object"}, {"features": "int64"},
    {"a" * 200: "int64"}, {"index": 0, "count": 1, "start": 0, "total": 10},
    {"index": 0, "count": 1, "start": 0, "total": 10**30}, {"index": 0},
    {"index": True, "count": 2, "start": 0, "total": 10}, [None], [[None, None]],
]  # fmt: skip


def header(place: Place, random: Random) -> None:
    """Give the header absurd values, and the right checksum."""
    with h5py.File(place.main, "r") as file:
        values = json.loads(file.attrs["header"])
    kind = random.integers(8)
    if kind == 0:
        texts = ["", "{", "null", "7", "[" * 5000, '{"a":' * 3000, "[]", '"x"', "NaN", "\ud800"]
        text = str(random.choice(texts))
    else:
        for _ in range(int(random.integers(1, 4))):
            name = str(random.choice(list(values) or ["rows"]))
            if kind == 1:
                values.pop(name, None)
            elif kind == 2:
                values[name + "2"] = 1
            else:
                values[name] = _ABSURD[random.integers(len(_ABSURD))]
        text = json.dumps(values)
    _set_text(place.main, "header", text)


def shards(place: Place, random: Random) -> None:
    """Give a joined file another list of shards, and mostly the right checksum."""
    with h5py.File(place.main, "r") as file:
        listed = json.loads(file.attrs["shards"])
    one = int(random.integers(len(listed)))
    link = place.folder / "link.h5"
    kind = random.integers(16)
    if kind == 0:
        listed[one]["file"] = str(place.outside)
    elif kind == 1:
        listed[one]["file"] = os.path.relpath(place.outside, place.folder)
    elif kind == 2:
        link.symlink_to(place.outside)
        listed[one]["file"] = link.name
    elif kind == 3:
        link.symlink_to(place.outside.parent)
        listed[one]["file"] = f"{link.name}/{place.outside.name}"
    elif kind == 4:
        listed[one]["file"] = MAIN
    elif kind == 5:
        shutil.copy(place.main, place.folder / "other.h5")
        listed[one]["file"] = "other.h5"
    elif kind == 6:
        listed = [
            {"file": f"./{'./' * i}{listed[one]['file']}", "rows": 1, "header_crc32": 1}
            for i in range(int(random.choice([5, 4000])))
        ]
    elif kind == 7:
        os.mkfifo(link)
        listed[one]["file"] = link.name
    elif kind == 8:
        link.mkdir()
        listed[one]["file"] = link.name
    elif kind == 9:
        link.symlink_to(link.name)
        listed[one]["file"] = link.name
    elif kind == 10:
        names = ["", ".", "..", "/", "\0", "a\0b", "\ud800", "x" * 5000, "/dev/zero", "a/../b"]
        listed[one]["file"] = str(random.choice(names)) or ""
    elif kind == 11:
        entry = str(random.choice(["file", "rows", "header_crc32"]))
        listed[one][entry] = _ABSURD[random.integers(len(_ABSURD))]
    elif kind == 12:
        listed = listed[: int(random.integers(len(listed)))]
    elif kind == 13:
        order = random.permutation(len(listed))
        listed = [listed[i] for i in order] + [listed[0]] * int(random.integers(2))
    elif kind == 14:
        listed[one]["extra"] = 1
    text = json.dumps(listed)
    if kind == 15:
        texts = ["", "null", "7", "[7]", "[[]]", "[" * 5000, "{}", '[{"file":"a"}]']
        text = str(random.choice(texts))
    _set_text(place.main, "shards", text)
    if random.random() < 0.1:
        with h5py.File(place.main, "r+") as file:
            file.attrs["shards_crc32"] = 1


def sparse(place: Place, random: Random) -> None:
    """Make a file that claims to be huge, is as long as it claims, and takes no space."""
    dtype = str(random.choice(["float32", "float16"]))
    rows, width = [(2**33, 8), (2, 2**36), (2**22, 2**16), (2**36, 1)][random.integers(4)]
    wanted = make_header(rows, width, dtype)
    if random.random() < 0.3:
        wanted = replace(wanted, shard=Shard(0, 1, 0, rows))
    place.main.unlink()
    write_sparse(place.main, wanted)


def write_sparse(path: Path, wanted: StoreHeader) -> None:
    """Write an empty store without the space that it takes."""
    with h5py.File(
        path, "w", libver=("v108", "v110"), alignment_threshold=1, alignment_interval=4096
    ) as file:
        describe_store(file, wanted)
        allocate(file, datasets(wanted))


def not_a_file(place: Place, random: Random) -> None:
    """Put something else in its place."""
    place.main.unlink()
    kind = random.integers(6)
    if kind == 0:
        place.main.mkdir()
    elif kind == 1:
        os.mkfifo(place.main)
    elif kind == 2:
        place.main.symlink_to(place.main.name)
    elif kind == 3:
        place.main.write_bytes(b"")
    elif kind == 4:
        place.main.write_bytes(b"\x89HDF\r\n\x1a\n" + random.bytes(int(random.integers(5000))))
    else:
        place.main.symlink_to("/dev/zero")
