"""Checksums of rows, and the check of whole files against them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from xxhash import xxh3_64_intdigest

from pntk.store.layout import DONE, MISSING, SKIPPED, Array, is_present
from pntk.store.part import Part

_BLOCK_BYTES = 2**22
_MESSAGES = 20


@dataclass
class VerifyReport:
    """What ``FeatureStore.verify`` found.

    ``ok`` is False only for damage; missing rows are no damage, they are computed on resuming.

    Attributes:
        ok: no bad row.
        rows_checked: rows whose checksum was compared (done and skipped ones).
        missing: rows not yet computed.
        skipped: rows that were left out as non-finite.
        bad_rows: indices of damaged rows, ascending.
        messages: one line for each of the first bad rows.
    """

    ok: bool
    rows_checked: int
    missing: int
    skipped: int
    bad_rows: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = (
            f"{'ok' if self.ok else 'DAMAGED'}: {self.rows_checked} rows checked, "
            f"{len(self.bad_rows)} bad, {self.missing} missing, {self.skipped} skipped"
        )
        return "\n".join([counts, *self.messages])


def row_checksums(indices: Array, done: Array, rows: Array, cells: Mapping[str, Array]) -> Array:
    """Checksum each row: XXH3 of its features, seeded by that of everything else about it.

    Args:
        indices: int64 [b], place of each row in its file.
        done: uint8 [b], DONE or SKIPPED.
        rows: little-endian features [b, k] as stored, C-contiguous.
        cells: name -> little-endian values [b] of every other dataset.

    Returns:
        uint64 [b].
    """
    if not len(indices):
        return np.empty(0, dtype="<u8")
    parts = [indices.astype("<i8"), done, *(cells[name] for name in sorted(cells))]
    others = np.concatenate([_bytes_of(part) for part in parts], axis=1)
    data = _bytes_of(rows)
    wide, narrow = data.shape[1], others.shape[1]
    content, about = data.reshape(-1).data, others.reshape(-1).data
    seeds = [xxh3_64_intdigest(about[j : j + narrow]) for j in range(0, len(about), narrow)]
    digests = [
        xxh3_64_intdigest(content[j : j + wide], seed)
        for j, seed in zip(range(0, len(content), wide), seeds, strict=True)
    ]
    return np.array(digests, dtype="<u8")


def damaged_rows(part: Part, first: int, done: Array, features: Array) -> tuple[Array, list[str]]:
    """Compare b rows of a file, from ``first`` on, with their checksums.

    Args:
        done: uint8 [b], their states, read before all else: a writer may be adding rows meanwhile.
        features: [b, k] as stored.

    Returns:
        Indices of the damaged rows, ascending, and one line for each.
    """
    last = first + len(done)
    rows = np.arange(first, last)
    present = is_present(done)
    unknown = ~present & (done != MISSING)
    cells = {name: part.read(name, first, last)[present] for name in part.layout.cells}
    stored = part.read("checksums", first, last)
    if not present.all():
        features = features[present]
    found = np.zeros(len(done), dtype="<u8")
    found[present] = row_checksums(rows[present], done[present], features, cells)
    wrong = present & (found != stored)
    states = f"{MISSING}, {DONE} or {SKIPPED}"
    messages = [
        f"done is {done[j]}, expected {states}"
        if unknown[j]
        else f"checksum is {stored[j]:#x}, the row's bytes give {found[j]:#x}"
        for j in np.flatnonzero(wrong | unknown)
    ]
    return rows[wrong | unknown], messages


def verify(parts: Sequence[Part], progress: bool = False) -> VerifyReport:
    """Compare every row that is done or skipped with its checksum.

    Args:
        parts: the files of a store.
        progress: show a progress bar.
    """
    report = VerifyReport(ok=True, rows_checked=0, missing=0, skipped=0)
    for part, first, last in _blocks(parts, progress):
        done = part.read("done", first, last)
        bad, messages = damaged_rows(part, first, done, part.read("features", first, last))
        where = "" if len(parts) == 1 else f" (in {part.path.name})"
        room = max(0, _MESSAGES - len(report.messages))
        report.messages += [
            f"row {part.start + row}{where}: {message}"
            for row, message in zip(bad[:room], messages[:room], strict=True)
        ]
        report.bad_rows += (part.start + bad).tolist()
        report.rows_checked += int(is_present(done).sum())
        report.missing += int((done == MISSING).sum())
        report.skipped += int((done == SKIPPED).sum())
    report.ok = not report.bad_rows
    if len(report.bad_rows) > _MESSAGES:
        report.messages.append(f"and {len(report.bad_rows) - _MESSAGES} more bad rows")
    return report


def _bytes_of(values: Array) -> Array:
    """The bytes of each of b rows or values, uint8 [b, ...]."""
    values = np.ascontiguousarray(values).reshape(len(values), -1)
    return values.view(np.uint8)


def _blocks(parts: Sequence[Part], progress: bool) -> Iterable[tuple[Part, int, int]]:
    blocks = []
    for part in parts:
        rows = part.layout.header.rows
        step = max(1, _BLOCK_BYTES // part.layout.extents["features"].row_bytes)
        blocks += [(part, first, min(first + step, rows)) for first in range(0, rows, step)]
    if not progress:
        return blocks
    from tqdm import tqdm

    return tqdm(blocks, desc="verify", unit="block")
