"""Shards: how rows are cut into files, how the files are called, and how they are joined."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

from pntk.errors import ConfigError, StoreError
from pntk.store.header import StoreHeader
from pntk.store.joined import check_fits, is_joined, open_parts, write_joined
from pntk.store.layout import is_present
from pntk.store.part import Part

Paths = Sequence[str | os.PathLike[str]]
Stores = list[tuple[Path, StoreHeader, tuple[Part, ...]]]

_NAMED = 8  # shards in a message


def cut_rows(rows: int, count: int, batch_size: int) -> list[tuple[int, int]]:
    """Cut rows into (start, stop) of shards, between batches, so that batches stay the same.

    Raises:
        ConfigError: there are more shards than batches.

    >>> cut_rows(1000, 3, 64)
    [(0, 320), (320, 640), (640, 1000)]
    """
    batches = -(-rows // batch_size)
    if type(count) is not int or not 1 <= count <= batches:
        raise ConfigError(
            f"{count!r} shards of {rows} rows in batches of {batch_size}; expected 1 to {batches} "
            "shards, a batch each: take fewer shards or a smaller batch size"
        )
    edges = [i * batches // count * batch_size for i in range(count)] + [rows]
    return list(pairwise(edges))


def shard_path(path: str | os.PathLike[str], index: int, count: int) -> Path:
    """Return where a shard of the store ``path`` is.

    >>> shard_path("train.h5", 3, 16).name
    'train.shard-00003-of-00016.h5'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.shard-{index:05d}-of-{count:05d}{path.suffix}")


def find_shards(path: str | os.PathLike[str]) -> list[Path]:
    """Return the shards of the store ``path`` that are there, by name."""
    path = Path(os.path.abspath(path))
    pattern = re.compile(
        re.escape(path.stem) + r"\.shard-\d{5,}-of-\d{5,}" + re.escape(path.suffix)
    )
    if not path.parent.is_dir():
        return []
    try:
        return sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be listed ({error.strerror})") from error


def shard_count(file: Path) -> int:
    """Return of how many shards a file of this name is one.

    >>> shard_count(Path("train.shard-00003-of-00016.h5"))
    16
    """
    return int(re.findall(r"\.shard-\d+-of-(\d+)", file.name)[-1])


def join(path: str | os.PathLike[str], shards: Paths | None = None) -> Path:
    """Make one store of several: their rows, one file after the other, without copying them.

    Shards of one data set are put in their order and must hold each of its rows. Stores that are no
    shards follow one another in the order given: that is how rows are appended. Joined stores may
    be among them, ``path`` itself too.

    Args:
        path: the file to write, in the folder of the shards or above it; a file that joins shards
            is replaced, any other is not.
        shards: stores; None for all shards of ``path`` that lie beside it.

    Returns:
        The absolute path.

    Raises:
        StoreError: rows of different kinds, overlapping or missing rows, shards elsewhere, or
            ``path`` cannot be written.
    """
    path = Path(os.path.abspath(path))
    _check_target(path)
    named = find_shards(path) if shards is None else [Path(os.path.abspath(p)) for p in shards]
    if not named:
        raise StoreError(
            f"{path}: no shards to join: there is no {shard_path(path, 0, 1).name} or the like in "
            f"{path.parent}; featurize with --shard, or name the stores to join"
        )
    stores: Stores = [(file, *open_parts(file)) for file in named]
    seen = set()
    for _, _, found in stores:
        for part in found:
            _check_place(path, part)
            check_fits(part.path, stores[0][1], part)
            if part.identity in seen:
                raise StoreError(f"{path}: {part.path} would be joined twice; name each store once")
            seen.add(part.identity)
    header, parts = _in_order(path, stores)
    for part in parts:
        missing = int((~is_present(part.read("done"))).sum())
        if missing:
            raise StoreError(
                f"{part.path}: {missing} of {part.layout.header.rows} rows are missing; run "
                "featurize again with the same settings to resume this shard, then join"
            )
    write_joined(path, header, parts)
    return path


def _check_target(path: Path) -> None:
    if not path.parent.is_dir():
        raise StoreError(f"{path}: the directory {path.parent} does not exist; create it first")
    if path.exists() and not is_joined(path):
        raise StoreError(
            f"{path}: exists and is not a file that joins shards, so it is not replaced; choose "
            "another path"
        )


def _check_place(path: Path, part: Part) -> None:
    folder = Path(os.path.realpath(path.parent))
    if not Path(os.path.realpath(part.path)).is_relative_to(folder):
        raise StoreError(
            f"{part.path}: is not in {path.parent}, where {path.name} will look for its shards; "
            "move it there, or join into a folder above both"
        )


def _in_order(path: Path, stores: Stores) -> tuple[StoreHeader, list[Part]]:
    """Header of the whole, and the parts with their places in it."""
    numbered = [header.shard is not None for _, header, _ in stores]
    if all(numbered):
        placed = [
            replace(part, start=header.shard.start)
            for _, header, found in stores
            for part in found
            if header.shard is not None
        ]
        placed.sort(key=lambda part: part.start)
        whole = placed[0].layout.header.whole()
        _check_cover(path, whole.rows, placed)
        return whole, placed
    if any(numbered):
        raise StoreError(
            f"{path}: {stores[numbered.index(False)][0].name} is a whole store and others are "
            "shards of one; join the shards first, then join that store and this one"
        )
    rows, parts = 0, []
    for _, header, found in stores:
        parts += [replace(part, start=rows + part.start) for part in found]
        rows += header.rows
    return replace(stores[0][1], rows=rows), parts


def _check_cover(path: Path, rows: int, parts: list[Part]) -> None:
    """Refuse shards that do not hold every row of the whole once."""
    reached, before = 0, ""
    for part in parts:
        shard = part.layout.header.shard
        assert shard is not None
        if shard.total != rows:
            raise StoreError(
                f"{path}: {part.path.name} is a shard of {shard.total} rows and "
                f"{parts[0].path.name} of {rows}; join shards of one data set"
            )
        if part.start < reached:
            raise StoreError(
                f"{path}: {part.path.name} and {before} both hold row {part.start}; the shards "
                "were cut differently (number of shards or batch size): delete one set, or name "
                "the shards to join"
            )
        if part.start > reached:
            raise _missing(path, reached, part.start, parts)
        reached, before = part.stop, part.path.name
    if reached < rows:
        raise _missing(path, reached, rows, parts)


def _missing(path: Path, first: int, last: int, parts: list[Part]) -> StoreError:
    shards = [part.layout.header.shard for part in parts]
    count = max(shard.count for shard in shards if shard is not None)
    there = {shard.index for shard in shards if shard is not None and shard.count == count}
    absent = (f"--shard {i}/{count}" for i in range(count) if i not in there)
    named = list(islice(absent, _NAMED + 1))
    more = " and others" if len(named) > _NAMED else ""
    return StoreError(
        f"{path}: rows {first} to {last - 1} are in no shard; featurize those that are absent "
        f"({', '.join(named[:_NAMED]) or f'all of {count}, cut anew'}{more}), or copy their files "
        f"to {path.parent}"
    )
