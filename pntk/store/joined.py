"""Joined shards: a small file that names files beside it, whose rows follow one another.

For other HDF5 readers the file holds virtual datasets. This package reads the list in an attribute
instead, so that it opens nothing but stores in the folder of the file.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from pntk.errors import StoreError
from pntk.store.create import create_file, describe_store
from pntk.store.hdf5 import open_hdf5, read_attribute, read_header, read_text
from pntk.store.header import StoreHeader
from pntk.store.layout import FORMAT, datasets, text_checksum
from pntk.store.part import Part, open_part, read_part

_FIELDS = {"file": str, "rows": int, "header_crc32": int}


def open_parts(path: Path) -> tuple[StoreHeader, tuple[Part, ...]]:
    """Open a store of one file or of joined ones.

    Raises:
        StoreError: whatever is wrong with the file or with a shard.
    """
    with open_hdf5(path) as file:
        header = read_header(path, file)
        if "shards" not in file.attrs:
            return header, (read_part(path, file, header),)
        shards = _read_list(path, file)
    if header.shard is not None:
        raise StoreError(f"{path}: joins shards and says that it is one; join them again")
    parts: list[Part] = []
    start = 0
    for shard in shards:
        parts.append(_open_shard(path, header, shard, start))
        start = parts[-1].stop
    if start != header.rows:
        raise StoreError(
            f"{path}: its shards hold {start} rows and its header says {header.rows}; "
            "join them again"
        )
    return header, tuple(parts)


def is_joined(path: Path) -> bool:
    """Whether a file is a store that joins shards.

    Raises:
        StoreError: it is no HDF5 file.
    """
    with open_hdf5(path) as file:
        return read_attribute(file, "format") == FORMAT and "shards" in file.attrs


def write_joined(path: Path, header: StoreHeader, parts: Sequence[Part]) -> None:
    """Write the file that joins shards, in the place of an earlier one if there is one.

    Args:
        header: of all rows.
        parts: stores in the folder of ``path`` or below it, in the order of their rows.
    """
    folder = os.path.realpath(path.parent)
    names = [Path(os.path.relpath(os.path.realpath(p.path), folder)).as_posix() for p in parts]
    listed = [
        {
            "file": name,
            "rows": part.layout.header.rows,
            "header_crc32": part.header_crc32,
        }
        for name, part in zip(names, parts, strict=True)
    ]

    def write(file: h5py.File) -> None:
        describe_store(file, header)
        text = json.dumps(listed)
        file.attrs["shards"] = np.bytes_(text)
        file.attrs["shards_crc32"] = text_checksum(text)
        for dataset, (shape, dtype) in datasets(header).items():
            plist = h5p.create(h5p.DATASET_CREATE)
            plist.set_obj_track_times(False)  # equal runs give equal files
            plist.set_layout(h5d.VIRTUAL)
            space = h5s.create_simple(shape)
            for name, part in zip(names, parts, strict=True):
                held = part.layout.extents[dataset].shape
                space.select_hyperslab((part.start, 0)[: len(shape)], held)
                source = os.fsencode(name.replace("%", "%%"))  # or HDF5 fills in numbers
                plist.set_virtual(space, source, dataset.encode(), h5s.create_simple(held))
            space.select_all()
            h5d.create(file.id, dataset.encode(), h5t.py_create(dtype), space, plist)

    create_file(path, write, replace=True)


def _read_list(path: Path, file: h5py.File) -> list[dict[str, object]]:
    try:
        listed = json.loads(read_text(path, file, "shards"))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: its list of shards is not JSON ({error})") from error
    right = isinstance(listed, list) and all(
        isinstance(shard, dict)
        and {field: type(value) for field, value in shard.items()} == _FIELDS
        for shard in listed
    )
    if not right or len({shard["file"] for shard in listed}) != len(listed):
        raise StoreError(f"{path}: its list of shards is damaged; join them again")
    return listed


def _open_shard(path: Path, header: StoreHeader, shard: dict[str, object], start: int) -> Part:
    name = str(shard["file"])
    place = _inside(path, name)
    if not os.path.exists(place):
        raise StoreError(
            f"{path}: its shard {name} is not in {place.parent}: put it back beside the file that "
            "joins it, featurize that shard again, or join the shards that are there"
        )
    part = open_part(place, start)
    if (part.layout.header.rows, part.header_crc32) != (shard["rows"], shard["header_crc32"]):
        raise StoreError(
            f"{path}: {name} is not the shard that was joined (its header differs); put the right "
            "file back, or join again"
        )
    check_fits(path, header, part)
    return part


def check_fits(path: Path, header: StoreHeader, part: Part) -> None:
    """Refuse a part whose rows are not of the kind that a header describes.

    Raises:
        StoreError: naming the first field that differs.
    """
    for field, ours, theirs in header.difference(part.layout.header):
        if field not in ("rows", "shard"):
            raise StoreError(
                f"{path}: {part.path.name} holds other rows: {field} is {theirs!r} there and "
                f"{ours!r} in the others; join only rows of one model, output and projection"
            )


def _inside(path: Path, name: str) -> Path:
    """The path of a shard, which must lie in the folder of the file that names it."""
    folder = Path(os.path.realpath(path)).parent
    try:
        place = Path(os.path.realpath(folder / name))
    except ValueError:  # a zero byte, or half of a surrogate pair
        place = folder.parent
    if Path(name).is_absolute() or ".." in Path(name).parts or not place.is_relative_to(folder):
        raise StoreError(
            f"{path}: its shard {name!r} is no path below {folder}, and nothing else is read; "
            "put the shards beside the file that joins them"
        )
    return place
