"""Checksums of rows, and the check of a whole store against them."""

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pntk.store.layout import DONE, MISSING, SKIPPED, Array

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


def row_checksums(indices: Array, done: Array, rows: Array, columns: Mapping[str, Array]) -> Array:
    """Checksum each row: crc32 over index, done value, features, then columns by name.

    Args:
        indices: int64 [b], place of each row in the store.
        done: uint8 [b], 1 or 2.
        rows: little-endian features [b, k], C-contiguous.
        columns: name -> little-endian values [b].

    Returns:
        uint64 [b], below 2**32.
    """
    cells = [columns[name] for name in sorted(columns)]
    result = np.empty(len(indices), dtype="<u8")
    for j, (index, state) in enumerate(zip(indices.tolist(), done.tolist(), strict=True)):
        crc = zlib.crc32(struct.pack("<qB", index, state))
        crc = zlib.crc32(rows[j].data, crc)
        for cell in cells:
            crc = zlib.crc32(cell[j].tobytes(), crc)
        result[j] = crc
    return result


def verify(views: Mapping[str, Array], progress: bool = False) -> VerifyReport:
    """Compare every row that is done or skipped with its checksum.

    Args:
        views: name -> array for all datasets of a store.
        progress: show a progress bar.
    """
    columns = {
        name: view for name, view in views.items() if name not in ("features", "done", "checksums")
    }
    features, checksums = views["features"], views["checksums"]
    done = views["done"].copy()  # a writer may be adding rows meanwhile
    rows, row_bytes = len(done), features.strides[0]
    block = max(1, _BLOCK_BYTES // row_bytes)
    bad: list[int] = []
    messages: list[str] = []
    for start in _blocks(rows, block, progress):
        state = done[start : start + block]
        unknown = start + np.flatnonzero(state > SKIPPED)
        present = start + np.flatnonzero((state == DONE) | (state == SKIPPED))
        cells = {name: column[present] for name, column in columns.items()}
        found = row_checksums(present, done[present], features[present], cells)
        wrong = found != checksums[present]
        messages += [f"row {row}: done is {done[row]}, expected 0, 1 or 2" for row in unknown]
        messages += [
            f"row {row}: checksum is {stored:#x}, the row's bytes give {value:#x}"
            for row, stored, value in zip(
                present[wrong], checksums[present[wrong]], found[wrong], strict=True
            )
        ]
        bad += sorted([*unknown.tolist(), *present[wrong].tolist()])
    if len(messages) > _MESSAGES:
        messages = [*messages[:_MESSAGES], f"and {len(bad) - _MESSAGES} more bad rows"]
    return VerifyReport(
        ok=not bad,
        rows_checked=int(np.count_nonzero((done == DONE) | (done == SKIPPED))),
        missing=int(np.count_nonzero(done == MISSING)),
        skipped=int(np.count_nonzero(done == SKIPPED)),
        bad_rows=bad,
        messages=messages,
    )


def _blocks(rows: int, block: int, progress: bool) -> Iterable[int]:
    starts = range(0, rows, block)
    if not progress:
        return starts
    from tqdm import tqdm

    return tqdm(starts, desc="verify", unit="block")
