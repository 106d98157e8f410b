"""The work that is killed, cut off and damaged: a small model, its data, and stores of rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from pntk.store import MISSING, RowWriter, StoreHeader
from pntk.store.joined import open_parts
from pntk.store.layout import Array
from pntk.store.part import Part

ROWS = 4000
BATCH = 8
WIDTH = 256
COUNTER = "PNTK_RELIABILITY_COUNTER"  # names a file that grows by a byte for each slow sample


def model() -> nn.Module:
    """Return a model with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).eval()


def data(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs [n, 16] and labels [n]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 16, generator=generator), torch.arange(rows) % 4


class Slow(Dataset):
    """The same, of which a sample takes two milliseconds to come."""

    def __init__(self) -> None:
        self.inputs, self.labels = data(1000)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(0.002)
        if COUNTER in os.environ:
            with open(os.environ[COUNTER], "ab") as file:
                file.write(b".")
        return self.inputs[index], self.labels[index]


# ---- stores of numbers that no model made --------------------------------------------------------


def make_header(rows: int, width: int, dtype: str = "float32", **changes: Any) -> StoreHeader:
    """Return a header with two extra columns."""
    values: dict[str, Any] = {
        "rows": rows,
        "width": width,
        "dtype": dtype,
        "projection": {"family": "hadamard", "proj_dim": width, "seed": 0},
        "output": {"name": "pntk"},
        "params": (("fc.weight", (8, 4)), ("fc.bias", (8,))),
        "weights": "ab12",
        "precision": "fp32",
        "columns": {"labels": "int64", "reweighting": "float32"},
    }
    return StoreHeader(**{**values, **changes})


def values(header: StoreHeader, start: int = 0) -> tuple[Array, dict[str, Array], Array]:
    """Return what rows ``start`` onwards of such a store hold: rows, columns, which are skipped."""
    random = np.random.default_rng(start)
    dtype = "float32" if header.dtype == "float16" else header.dtype
    rows = random.standard_normal((header.rows, header.width)).astype(dtype)
    columns = {
        name: random.integers(1, 100, header.rows).astype(kind)
        for name, kind in header.columns.items()
    }
    return rows, columns, np.arange(header.rows) % 10 == 7


def write_missing(path: Path, header: StoreHeader, start: int = 0, **options: Any) -> None:
    """Write what a store lacks."""
    rows, columns, skipped = values(header, start)
    with RowWriter.open(path, header, **options) as writer:
        lacks = writer.missing()
        writer.write(
            lacks, rows[lacks], {name: c[lacks] for name, c in columns.items()}, skipped[lacks]
        )


# ---- what is in a store --------------------------------------------------------------------------


def contents(path: Path) -> dict[str, Array]:
    """Return the bytes of every dataset, one row a row of the store: name -> uint8 [n, ...]."""
    return contents_of(*open_parts(path))


def contents_of(header: StoreHeader, parts: Sequence[Part]) -> dict[str, Array]:
    """Return what ``contents`` does, of a store that is open."""
    found: dict[str, Array] = {}
    for name in parts[0].layout.extents:
        values = np.concatenate([part.read(name) for part in parts])
        found[name] = values.reshape(header.rows, -1).view(np.uint8)
    return found


def differing(found: dict[str, Array], expected: dict[str, Array]) -> list[str]:
    """Return the datasets that are not the same byte for byte."""
    if found.keys() != expected.keys():
        return [f"{sorted(found)} in the place of {sorted(expected)}"]
    return [name for name in expected if not np.array_equal(found[name], expected[name])]


def wrong_rows(found: dict[str, Array], expected: dict[str, Array]) -> list[int]:
    """Return the rows that are not missing and not the expected ones, byte for byte."""
    done = found["done"][:, 0] != MISSING
    wrong = np.zeros_like(done)
    for name, values in expected.items():
        wrong |= (found[name] != values).any(1)
    return np.flatnonzero(done & wrong).tolist()


@contextmanager
def folder(parent: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Make a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="pntk-", dir=parent) as name:
        yield Path(name).resolve()
