"""Copy rows out of a store: into a single store, or into files of other programs."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch

from pntk.errors import ConfigError, StoreError
from pntk.extras import require
from pntk.files import check_replaceable
from pntk.store import SKIPPED, FeatureStore, RowWriter

SUFFIXES = (".h5", ".npy", ".npz", ".safetensors", ".faiss")
_BLOCK_BYTES = 2**24

Rows = slice | Sequence[int] | npt.NDArray[np.integer] | torch.Tensor | None
Array = npt.NDArray[np.generic]


def export(
    store: FeatureStore,
    path: str | os.PathLike[str],
    *,
    rows: Rows = None,
    storage: str | None = None,
) -> Path:
    """Copy rows of a store to a file, whose suffix decides what it is.

    - ``.h5``: one store that holds its rows itself: joined shards merged, or a selection. A
      selection gets a column ``indices``, the rows' numbers in the first store, if it has none.
    - ``.npy``: the rows [m, k]. ``.npz``: ``features``, ``skipped`` and the columns.
    - ``.safetensors``: the same as ``.npz``.
    - ``.faiss``: a flat FAISS index of the rows by inner product.

    Rows pass through in blocks, so that stores may be larger than memory (but for FAISS).

    Args:
        rows: slice, numbers or mask; None for all.
        storage: of ``.h5``: ``full`` or ``fp16``; None for that of the store.

    Returns:
        The absolute path.

    Raises:
        ConfigError: another suffix, rows that the store has not, or a path that cannot be written.
        StoreError: rows are missing, or the disk is full.
    """
    path = Path(os.path.abspath(path))
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} ends in {path.suffix!r}; expected {', '.join(SUFFIXES)}")
    if storage is not None and path.suffix != ".h5":
        raise ConfigError(f"storage={storage!r} is for .h5, {path.name} is none")
    store.require_complete()
    numbers = _numbers(rows, len(store))
    check_replaceable(path)
    write = {
        ".h5": lambda store, path, numbers: _to_store(store, path, numbers, storage),
        ".npy": _to_npy,
        ".npz": _to_npz,
        ".safetensors": _to_safetensors,
        ".faiss": _to_faiss,
    }[path.suffix]
    _whole(path, lambda temporary: write(store, temporary, numbers))
    return path


def _numbers(rows: Rows, length: int) -> Array:
    if rows is None:
        return np.arange(length)
    key = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
    try:
        if not isinstance(key, slice):
            key = np.asarray(key) if len(key) else np.empty(0, np.int64)
        numbers = np.arange(length)[key]
    except (IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"rows: {error}; the store has rows 0 to {length - 1}") from error
    if numbers.ndim != 1 or not len(numbers):
        raise ConfigError(f"rows is {rows!r}, which selects none of {length} rows")
    return numbers


def _blocks(store: FeatureStore, numbers: Array) -> Iterator[tuple[slice, Array]]:
    """Go through rows: (their places in the selection, rows [b, k])."""
    step = max(1, _BLOCK_BYTES // (store.header.width * store.dtype.itemsize))
    for start in range(0, len(numbers), step):
        place = slice(start, min(start + step, len(numbers)))
        yield place, store[numbers[place]].numpy()


def _to_store(store: FeatureStore, path: Path, numbers: Array, storage: str | None) -> None:
    header = replace(store.header, rows=len(numbers), shard=None)
    if storage == "fp16":
        header = replace(header, dtype="float16")
    elif storage == "full" and header.dtype == "float16":
        header = replace(header, dtype="float32")
    elif storage not in (None, "full"):
        raise ConfigError(f"storage is {storage!r}; expected full or fp16")
    if store.header.dtype == "float64" and header.dtype == "float16":
        raise ConfigError("storage='fp16' is for rows of float32, these are float64")
    columns = {name: store.column(name)[numbers] for name in store.header.columns}
    if not np.array_equal(numbers, np.arange(len(store))):
        header = replace(header, info={**header.info, "selection": store.path.name})
        if "indices" not in columns:
            header = replace(header, columns={**header.columns, "indices": "int64"})
            columns["indices"] = numbers
    skipped = store.done[numbers] == SKIPPED
    with RowWriter.open(path, header, resume=False) as writer:
        for place, block in _blocks(store, numbers):
            cells = {name: values[place] for name, values in columns.items()}
            writer.write(np.arange(place.start, place.stop), block, cells, skipped[place])


def _to_npy(store: FeatureStore, path: Path, numbers: Array) -> None:
    with open(path, "wb") as file:
        _write_features(file, store, numbers)


def _to_npz(store: FeatureStore, path: Path, numbers: Array) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            _write_features(file, store, numbers)
        for name, values in _columns(store, numbers).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def _write_features(file: IO[bytes], store: FeatureStore, numbers: Array) -> None:
    dtype = np.dtype(str(store.dtype).removeprefix("torch."))
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(numbers), store.header.width),
    }
    np.lib.format.write_array_header_1_0(file, described)
    for _, block in _blocks(store, numbers):
        file.write(np.ascontiguousarray(block).data)


def _columns(store: FeatureStore, numbers: Array) -> dict[str, Array]:
    columns = {name: store.column(name)[numbers] for name in store.header.columns}
    return {"skipped": store.done[numbers] == SKIPPED, **columns}


_SAFETENSORS = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64", "uint8": "U8"}


def _to_safetensors(store: FeatureStore, path: Path, numbers: Array) -> None:
    """Write the format block by block: the library wants all tensors in memory.

    Source: https://github.com/huggingface/safetensors#format
    """
    columns = _columns(store, numbers)
    columns["skipped"] = columns["skipped"].astype(np.uint8)
    kind = str(store.dtype).removeprefix("torch.")
    shape = [len(numbers), store.header.width]
    size = shape[0] * shape[1] * store.dtype.itemsize
    listed = {
        "__metadata__": {"pntk": store.header.to_json()},
        "features": {"dtype": _SAFETENSORS[kind], "shape": shape, "data_offsets": [0, size]},
    }
    for name, values in columns.items():
        listed[name] = {
            "dtype": _SAFETENSORS[values.dtype.name],
            "shape": [len(numbers)],
            "data_offsets": [size, size + values.nbytes],
        }
        size += values.nbytes
    text = json.dumps(listed).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, block in _blocks(store, numbers):
            file.write(np.ascontiguousarray(block).data)
        for values in columns.values():
            file.write(np.ascontiguousarray(values).data)


def _to_faiss(store: FeatureStore, path: Path, numbers: Array) -> None:
    faiss = require("faiss", "a FAISS index", "search")
    index = faiss.IndexFlatIP(store.header.width)
    for _, block in _blocks(store, numbers):
        index.add(np.ascontiguousarray(block, dtype=np.float32))
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise StoreError(f"{path}: FAISS cannot write it ({error})") from error


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename, so that nobody sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
