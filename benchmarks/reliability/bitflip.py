"""Flipped bits: ``python -m benchmarks.reliability.bitflip --random 4000 --seed 0``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.reliability.report import DIR_HELP, Finding, finish
from benchmarks.reliability.task import contents, differing, folder, make_header, write_missing
from pntk.store import MISSING, FeatureStore, RowWriter, Shard, StoreHeader, join, repair
from pntk.store.joined import open_parts
from pntk.store.shards import shard_path

Bit = tuple[Path, int, int]  # file, byte, bit
Flip = tuple[str, int, Bit]  # dataset, row of the store, bit

SMALL = (10, 6)  # rows, width
LARGE = (20_000, 64)


class Stores:
    """A store that can be damaged and made whole again.

    Args:
        kind: float32, float64, float16, or "joined": three shards of float32.
    """

    def __init__(self, place: Path, kind: str, rows: int, width: int) -> None:
        self.path = place / f"{kind}-{rows}.h5"
        if kind != "joined":
            self.files = [(self.path, make_header(rows, width, kind))]
        else:
            cuts = [0, rows // 3, rows // 2, rows]
            self.files = [
                (
                    shard_path(self.path, i, 3),
                    make_header(stop - start, width, shard=Shard(i, 3, start, rows)),
                )
                for i, (start, stop) in enumerate(pairwise(cuts))
            ]
        self.write_missing()
        if kind == "joined":
            join(self.path, [file for file, _ in self.files])
        self.whole = contents(self.path)
        self.bytes = {file: file.read_bytes() for file, _ in self.files}

    def write_missing(self) -> None:
        """Featurize again."""
        for file, header in self.files:
            write_missing(file, header, start=_start(header))

    def flips(self) -> Iterator[Flip]:
        """Every bit of every dataset."""
        for part in open_parts(self.path)[1]:
            for name, extent in part.layout.extents.items():
                for byte in range(extent.nbytes):
                    row = part.start + byte // extent.row_bytes
                    for bit in range(8):
                        yield name, row, (part.path, extent.offset + byte, bit)

    def random_flips(self, count: int, random: np.random.Generator) -> list[Flip]:
        """Bits anywhere in the datasets; each dataset gets its share, but at least a tenth."""
        parts = open_parts(self.path)[1]
        names = list(parts[0].layout.extents)
        size = np.array([parts[0].layout.extents[name].row_bytes for name in names])
        odds = np.maximum(size / size.sum(), 0.1)
        found = {}
        for _ in range(count):
            name = names[random.choice(len(names), p=odds / odds.sum())]
            part = parts[random.integers(len(parts))]
            extent = part.layout.extents[name]
            byte = int(random.integers(extent.nbytes))
            bit = (part.path, extent.offset + byte, int(random.integers(8)))
            found[bit] = (name, part.start + byte // extent.row_bytes, bit)
        return list(found.values())


def flip(bits: list[Bit]) -> None:
    """Flip bits in files, which a second call undoes."""
    for path, byte, bit in bits:
        with open(path, "r+b") as file:
            file.seek(byte)
            value = file.read(1)[0]
            file.seek(byte)
            file.write(bytes([value ^ 1 << bit]))


def found_wrong(path: Path, rows: list[int]) -> str:
    """Return how a report differs from exactly these rows; nothing if it does not."""
    report = FeatureStore(path).verify()
    if report.ok or report.bad_rows != rows:
        return f"verify names rows {report.bad_rows[:9]}, damaged were {rows[:9]}"
    return "" if f"row {rows[0]}" in report.messages[0] else f"says {report.messages[0]!r}"


def repaired_wrong(stores: Stores, rows: list[int]) -> str:
    """Repair and featurize again; return what is wrong, or nothing."""
    repair(stores.path)
    after = FeatureStore(stores.path)
    marked = np.flatnonzero(after.done == MISSING).tolist()
    if marked != rows or not after.verify().ok:
        return f"repair marked {marked[:9]}, damaged were {rows[:9]}"
    stores.write_missing()
    if different := differing(contents(stores.path), stores.whole):
        return f"featurized again, {', '.join(different)} differ"
    changed = [file.name for file, content in stores.bytes.items() if file.read_bytes() != content]
    return f"featurized again, {', '.join(changed)} differ from the original" if changed else ""


def every_bit(finding: Finding, stores: Stores, kind: str, repair_every: int, step: int) -> None:
    """Flip one bit after the other."""
    flipped: Counter[str] = Counter()
    caught = repaired = 0
    for number, (name, row, bit) in enumerate(stores.flips()):
        if number % step:
            continue
        flip([bit])
        wrong = found_wrong(stores.path, [row])
        flipped[name] += 1
        caught += not wrong
        if not wrong and flipped.total() % repair_every == 1 % repair_every:
            wrong = repaired_wrong(stores, [row])
            repaired += not wrong
        else:
            flip([bit])
        finding.require(not wrong, f"{kind}: bit {bit[1:]} of {name}, row {row}: {wrong}")
        if wrong:
            for file, content in stores.bytes.items():
                file.write_bytes(content)
    finding.rows.append(
        {
            "store": f"{kind}, {len(stores.whole['done'])} rows",
            "bits flipped": flipped.total(),
            "how": "every one, alone" if step == 1 else f"every {step}th, alone",
            "found, and the row named": caught,
            "repaired and made again, equal": repaired,
            "datasets": ", ".join(f"{name} {count:,}" for name, count in flipped.items()),
        }
    )


def random_bits(finding: Finding, stores: Stores, kind: str, count: int, seed: int) -> None:
    """Flip many bits at once, as a bad disk or cable does."""
    flips = stores.random_flips(count, np.random.default_rng(seed))
    rows = sorted({row for _, row, _ in flips})
    flip([bit for _, _, bit in flips])
    missed = found_wrong(stores.path, rows)
    wrong = missed or repaired_wrong(stores, rows)
    finding.require(not wrong, f"{kind}, {count} random bits: {wrong}")
    flipped = Counter(name for name, _, _ in flips)
    finding.rows.append(
        {
            "store": f"{kind}, {len(stores.whole['done']):,} rows",
            "bits flipped": len(flips),
            "how": f"at random, together, in {len(rows):,} rows",
            "found, and the row named": 0 if missed else len(flips),
            "repaired and made again, equal": 0 if wrong else len(rows),
            "datasets": ", ".join(f"{name} {count:,}" for name, count in flipped.items()),
        }
    )


def missing_rows(finding: Finding, place: Path) -> None:
    """Flip every bit of ``done`` where rows are missing: they must not come to exist."""
    path = place / "partly.h5"
    header = make_header(8, 6)
    RowWriter.open(path, header).close()
    extent = open_parts(path)[1][0].layout.extents["done"]
    bits = [(path, extent.offset + byte, bit) for byte in range(8) for bit in range(8)]
    caught = 0
    for bit in bits:
        flip([bit])
        row = bit[1] - extent.offset
        wrong = found_wrong(path, [row])
        if FeatureStore(path).num_done:
            wrong = "a row came to exist"
        caught += not wrong
        finding.require(not wrong, f"missing rows: bit {bit[1:]}: {wrong}")
        flip([bit])
    finding.rows.append(
        {
            "store": "float32, 8 rows, all missing",
            "bits flipped": len(bits),
            "how": "every one of done, alone",
            "found, and the row named": caught,
            "datasets": f"done {len(bits)}",
        }
    )


def exchanged_states(finding: Finding, stores: Stores) -> None:
    """Make a skipped row of one that is done, and the reverse: eight bits at once."""
    extent = open_parts(stores.path)[1][0].layout.extents["done"]
    caught = 0
    for row in range(len(stores.whole["done"])):
        bits = [(stores.path, extent.offset + row, bit) for bit in range(8)]
        flip(bits)
        wrong = found_wrong(stores.path, [row])
        caught += not wrong
        finding.require(not wrong, f"row {row}, done and skipped exchanged: {wrong}")
        flip(bits)
    finding.rows.append(
        {
            "store": f"float32, {len(stores.whole['done'])} rows",
            "bits flipped": 8 * len(stores.whole["done"]),
            "how": "all eight of a row's done: done and skipped exchanged",
            "found, and the row named": 8 * caught,
            "datasets": f"done {8 * len(stores.whole['done'])}",
        }
    )


def run(
    random: int = 4000,
    seed: int = 0,
    parent: Path | None = None,
    *,
    step: int = 1,
    repair_every: int = 50,
    large: tuple[int, int] = LARGE,
) -> Finding:
    """Flip bits in stores of every kind.

    Args:
        random: bits of the larger stores.
        step: of the small stores, flip only every so many bits.
        repair_every: repair after every so many.
        large: rows and width of the larger stores.
    """
    finding = Finding(
        "bitflip",
        f"Bits flipped in all datasets, seed {seed}: `verify` has to find each and name exactly "
        "its row, `repair` has to mark exactly that row as missing, and after featurizing again "
        "the files equal the original ones byte for byte.",
    )
    with folder(parent) as place:
        for kind in ("float32", "float64", "float16", "joined"):
            every_bit(finding, Stores(place, kind, *SMALL), kind, repair_every, step)
        missing_rows(finding, place)
        exchanged_states(finding, Stores(place, "float32", *SMALL))
        for kind in ("float32", "float16", "joined"):
            random_bits(finding, Stores(place, kind, *large), kind, random, seed)
    return finding


def _start(header: StoreHeader) -> int:
    return header.shard.start if header.shard else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=4000, metavar="N", help="bits, in the larger")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--dir", type=Path, help=DIR_HELP)
    given = parser.parse_args()
    return finish(run(given.random, given.seed, given.dir))


if __name__ == "__main__":
    raise SystemExit(main())
