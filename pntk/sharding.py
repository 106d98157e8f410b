"""Featurize a data set into shards: which there are, who writes which, and the joined store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pntk.distributed import Group, is_distributed, processes
from pntk.errors import ConfigError, DistributedError, StoreError
from pntk.store import RowWriter, Shard, StoreHeader, join
from pntk.store.hdf5 import open_hdf5, read_header
from pntk.store.header import explain_difference
from pntk.store.joined import is_joined
from pntk.store.layout import is_present
from pntk.store.part import open_part
from pntk.store.shards import cut_rows, find_shards, shard_count, shard_path

Fill = Callable[[Path, StoreHeader, bool], None]


@dataclass(frozen=True)
class ShardPlan:
    """Shards of a data set, and the ranks that write them.

    Attributes:
        files: (file, header) of each shard.
        work: numbers of the shards that each rank writes; those that are complete are nobody's.
    """

    files: list[tuple[Path, StoreHeader]]
    work: list[list[int]]


def checked_shard(shard: object, shards: int | None) -> tuple[int, int]:
    """Return (i, n) of a shard that one process writes by itself.

    Raises:
        ConfigError: no pair of integers, or the process is not by itself.
    """
    if not isinstance(shard, (tuple, list)) or [type(i) for i in shard] != [int, int]:
        raise ConfigError(f"shard is {shard!r}; expected (i, n): the i-th of n shards, from 0")
    if shards is not None or is_distributed():
        raise ConfigError(
            f"shard={shard} beside {'shards' if shards is not None else 'several ranks'}: a shard "
            "is for one process by itself; ranks share the shards without it"
        )
    index, count = shard
    return index, count


def one_shard(
    path: Path, header: StoreHeader, batch_size: int, index: int, count: int
) -> tuple[Path, StoreHeader]:
    """Return file and header of one shard.

    Args:
        path: the store of which it is a shard.
        header: of all rows.
        index, count: number of the shard, from 0, and of all shards.

    Raises:
        ConfigError: there is no such shard.
    """
    if count < 1:
        raise ConfigError(f"shard {index}/{count}: expected at least one shard")
    if not 0 <= index < count:
        raise ConfigError(
            f"shard {index}/{count}: expected 0 to {count - 1}; shards are counted from 0"
        )
    start, stop = cut_rows(header.rows, count, batch_size)[index]
    shard = Shard(index, count, start, header.rows)
    return shard_path(path, index, count), replace(header, rows=stop - start, shard=shard)


def featurize_shards(
    path: Path, header: StoreHeader, batch_size: int, count: int | None, fill: Fill, *, resume: bool
) -> None:
    """Write all shards that are not complete, each by one of the processes, and join them.

    Args:
        path: the store to make.
        header: of all rows.
        count: number of shards; None for those that are there, or one a process.
        fill: (file, header, resume) writes what a shard still lacks.
        resume: whether shards may exist.

    Raises:
        ConfigError, StoreError: the shards that are there do not fit; before any row is made.
        DistributedError: ranks differ, or another one has ended.
    """
    with processes() as group:
        _check_alike(group, header)
        plan = group.share(
            make_plan(path, header, batch_size, count, group.size, resume=resume)
            if group.rank == 0
            else None
        )
        assert plan is not None
        mine = [plan.files[i] for i in plan.work[group.rank]]
        for file, shard in mine:  # all space is reserved before the first row is made
            RowWriter.open(file, shard).close()
        for file, shard in mine:
            fill(file, shard, True)
        group.wait()
        if group.rank == 0:
            join(path, [file for file, _ in plan.files])
        group.wait()


def make_plan(
    path: Path, header: StoreHeader, batch_size: int, count: int | None, ranks: int, *, resume: bool
) -> ShardPlan:
    """Decide on shards; those that are there stay as they are, whoever wrote them.

    Raises:
        ConfigError, StoreError: the shards that are there do not fit.
    """
    found = find_shards(path)
    if path.exists():
        _check_whole(path, header, found)
    if not resume and (found or path.exists()):
        raise StoreError(
            f"{path}: the store or shards of it exist and resume=False; choose another path, pass "
            "resume=True, or delete them"
        )
    if count is not None:
        cut_rows(header.rows, count, batch_size)
    count = _number(path, found, count) or min(ranks, -(-header.rows // batch_size))
    files = [one_shard(path, header, batch_size, i, count) for i in range(count)]
    missing = [_missing(file, shard) for file, shard in files]
    return ShardPlan(files, assign(missing, ranks))


def assign(missing: Sequence[int], ranks: int) -> list[list[int]]:
    """Give each shard that lacks rows to a rank: the largest first, to the one with least to do.

    >>> assign([100, 0, 100, 60, 50], 2)
    [[0, 3], [2, 4]]
    """
    work: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for shard in sorted(range(len(missing)), key=lambda i: -missing[i]):
        if missing[shard]:
            rank = load.index(min(load))
            work[rank].append(shard)
            load[rank] += missing[shard]
    return work


def _check_whole(path: Path, header: StoreHeader, shards: Sequence[Path]) -> None:
    """Refuse a store at ``path`` unless it is an earlier join of these very shards."""
    with open_hdf5(path) as file:
        different = header.difference(read_header(path, file))
    if different:
        raise StoreError(f"{path}: cannot resume: {explain_difference(different)}")
    if not is_joined(path):
        raise StoreError(
            f"{path}: holds its rows itself and is not made of shards; go on with one process and "
            "without a number of shards, choose another path, or delete it"
        )
    if not shards:
        raise StoreError(
            f"{path}: joins stores that are not shards of its own, or are gone; choose another "
            "path, or delete it"
        )


def _number(path: Path, found: Sequence[Path], count: int | None) -> int | None:
    """Number of shards, from the names of those that are there."""
    counts = sorted({shard_count(file) for file in found})
    if len(counts) > 1:
        raise StoreError(
            f"{path}: there are shards of {' and of '.join(map(str, counts))}; delete those of one "
            "set, or choose another path"
        )
    if counts and count not in (None, counts[0]):
        raise ConfigError(
            f"{path} was begun with {counts[0]} shards, {count} were asked for; go on with "
            f"{counts[0]} (any number of processes can), or choose another path"
        )
    return counts[0] if counts else count


def _missing(file: Path, header: StoreHeader) -> int:
    """Rows that a shard lacks."""
    if not os.path.exists(file):
        return header.rows
    part = open_part(file)
    different = header.difference(part.layout.header)
    if different:
        raise StoreError(f"{file}: cannot resume: {explain_difference(different)}")
    return int((~is_present(part.read("done"))).sum())


def _check_alike(group: Group, header: StoreHeader) -> None:
    """Refuse ranks that would make different rows, before they do."""
    first = StoreHeader.from_json(group.share(header.to_json()))
    for field, ours, theirs in header.difference(first):
        raise DistributedError(
            f"rank {group.rank}: {field} is {ours!r} here and {theirs!r} on rank 0; give all ranks "
            "the same weights, data and settings (load one checkpoint, or broadcast the weights)"
        )
