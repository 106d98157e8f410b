from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pntk.store import RowWriter, StoreHeader

MakeHeader = Callable[..., StoreHeader]


@pytest.fixture
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


@pytest.fixture
def values() -> Callable[[StoreHeader], tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Rows and columns that a full store of this header holds."""

    def make(header: StoreHeader) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        random = np.random.default_rng(0)
        rows = random.standard_normal((header.rows, header.width)).astype(header.dtype)
        columns = {
            name: random.integers(0, 9, header.rows).astype(dtype)
            for name, dtype in header.columns.items()
        }
        return rows, columns

    return make


@pytest.fixture
def full_store(tmp_path: Path, make_header: MakeHeader, values: Any) -> Path:
    """A complete store of ten rows, of which row 7 is skipped."""
    path = tmp_path / "full.h5"
    header = make_header()
    rows, columns = values(header)
    with RowWriter.open(path, header) as writer:
        writer.write(np.arange(10), rows, columns, skipped=np.arange(10) == 7)
    return path
