"""Whole files, of which ``accidents`` and ``attacks`` make others; see ``fuzz``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.reliability.task import make_header, write_missing
from pntk import ntk
from pntk.store import RowWriter, Shard, join
from pntk.store.shards import shard_path

Random = np.random.Generator

MAIN = "store.h5"
SHAPES = {"plain": (10, 6), "half": (10, 6), "partial": (12, 6), "long": (10, 6), "joined": (12, 6)}
KERNEL = "kernel"
# put where sizes and addresses may be
NUMBERS = (0, 1, 2, 2**8 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Place:
    """Where a file is to be mutated.

    Attributes:
        folder: with ``store.h5`` and, of a joined store, its shards.
        outside: a file outside of the folder, of which nothing may be read.
    """

    folder: Path
    outside: Path

    @property
    def main(self) -> Path:
        return self.folder / MAIN


def make_bases(root: Path) -> dict[str, Path]:
    """Make whole files, each in a folder of its own: name -> folder."""
    for name in (*SHAPES, KERNEL):
        (root / name).mkdir()
    write_missing(root / "plain" / MAIN, make_header(*SHAPES["plain"]))
    write_missing(root / "half" / MAIN, make_header(*SHAPES["half"], "float16"))
    many = tuple((f"layers.{i}.weight", (3, 4)) for i in range(2000))  # goes into a heap
    write_missing(root / "long" / MAIN, make_header(*SHAPES["long"], "float64", params=many))
    partial = root / "partial" / MAIN
    write_missing(partial, make_header(*SHAPES["partial"]))
    with RowWriter.reopen(partial) as writer:
        writer.forget([1, 2, 11])
    joined = root / "joined" / MAIN
    for i, (start, stop) in enumerate([(0, 4), (4, 6), (6, 12)]):
        header = make_header(stop - start, 6, shard=Shard(i, 3, start, 12))
        write_missing(shard_path(joined, i, 3), header, start)
    join(joined)
    ntk(torch.randn(70, 5), out=root / KERNEL / MAIN)
    return {name: root / name for name in (*SHAPES, KERNEL)}


def _some_file(place: Place, random: Random) -> Path:
    return Path(random.choice(sorted(map(str, place.folder.glob("*.h5")))))


def edit(place: Place, random: Random, change: Callable[[bytearray], bytes | None]) -> None:
    path = _some_file(place, random)
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content) or bytes(content))
