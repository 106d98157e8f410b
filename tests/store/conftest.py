from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pntk.store import RowWriter, StoreHeader
from pntk.store.half import decode, encode
from pntk.store.part import open_part

MakeHeader = Callable[..., StoreHeader]
Values = Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]


@pytest.fixture(scope="session")
def make_header() -> MakeHeader:
    """A header of 10 rows of 6 numbers, with changes."""

    def make(**changes: Any) -> StoreHeader:
        values: dict[str, Any] = {
            "rows": 10,
            "width": 6,
            "dtype": "float32",
            "projection": {"family": "hadamard", "proj_dim": 6, "seed": 0},
            "output": {"name": "pntk"},
            "params": (("conv.weight", (8, 3, 3, 3)), ("conv.bias", (8,))),
            "weights": "ab12",
            "precision": "float32",
            "columns": {"labels": "int64", "reweighting": "float32"},
            "info": {"pntk": "0"},
        }
        return StoreHeader(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def values() -> Values:
    """Rows and columns that a full store of this header holds."""

    def make(header: StoreHeader, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        random = np.random.default_rng(seed)
        kind = "float32" if header.dtype == "float16" else header.dtype
        rows = random.standard_normal((header.rows, header.width)).astype(kind)
        columns = {
            name: random.integers(0, 9, header.rows).astype(dtype)
            for name, dtype in header.columns.items()
        }
        return rows, columns

    return make


@pytest.fixture(scope="session")
def held(values: Values) -> Callable[..., np.ndarray]:
    """Rows of a full store of this header as they are read."""

    def read(header: StoreHeader, seed: int = 0) -> np.ndarray:
        rows, _ = values(header, seed)
        return decode(*encode(rows)).numpy() if header.dtype == "float16" else rows

    return read


@pytest.fixture
def make_store(tmp_path: Path, make_header: MakeHeader, values: Values) -> Callable[..., Path]:
    """A store by its name, full but for the rows that are to be missing."""

    def make(
        name: str, *, seed: int = 0, missing: Any = (), skipped: Any = (), **changes: Any
    ) -> Path:
        header = make_header(**changes)
        rows, columns = values(header, seed)
        there = np.setdiff1d(np.arange(header.rows), missing)
        cells = {name: column[there] for name, column in columns.items()}
        with RowWriter.open(tmp_path / name, header) as writer:
            writer.write(there, rows[there], cells, np.isin(there, skipped))
        return tmp_path / name

    return make


@pytest.fixture
def full_store(make_store: Callable[..., Path]) -> Path:
    """A complete store of ten rows, of which row 7 is skipped."""
    return make_store("full.h5", skipped=[7])


@pytest.fixture(scope="session")
def flip() -> Callable[..., None]:
    """Flip a bit of a row in one of the datasets of a file."""

    def flip(path: Path, name: str, row: int, bit: int = 0) -> None:
        extent = open_part(path).layout.extents[name]
        with open(path, "r+b") as file:
            file.seek(extent.offset + row * extent.row_bytes)
            [byte] = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1 << bit]))

    return flip


@pytest.fixture(scope="session")
def edit() -> Callable[..., None]:
    """Set a root attribute of an HDF5 file."""

    def edit(path: Path, name: str, value: object) -> None:
        with h5py.File(path, "r+") as file:
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value

    return edit
