"""Every flipped bit is found and repaired; see benchmarks/reliability/bitflip.py."""

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks.reliability import bitflip
from benchmarks.reliability.bitflip import Stores
from pntk.store import integrity


def test_flipped_bits_are_found_and_repaired(tmp_path):
    finding = bitflip.run(300, parent=tmp_path, step=23, repair_every=40, large=(500, 16))
    assert finding.failures == []
    flipped = [int(row["bits flipped"]) for row in finding.rows]
    assert min(flipped) >= 64 and sum(flipped) > 1200
    assert "scales" in str(finding.rows[2]["datasets"])


def test_every_bit_is_flipped_once(tmp_path):
    stores = Stores(tmp_path, "joined", 6, 2)
    flips = [bit for _, _, bit in stores.flips()]
    assert len(set(flips)) == len(flips) == 8 * 6 * (2 * 4 + 1 + 8 + 8 + 4)
    assert {row for _, row, _ in stores.flips()} == set(range(6))


@pytest.mark.parametrize("left_out", ["labels", "scales"])
def test_checksums_that_leave_something_out_are_noticed(tmp_path, monkeypatch, left_out):
    right = integrity.row_checksums

    def blind(indices, done, rows, cells):
        return right(indices, done, rows, {n: c for n, c in cells.items() if n != left_out})

    monkeypatch.setattr(integrity, "row_checksums", blind)
    monkeypatch.setattr("pntk.store.writer.row_checksums", blind)
    stores = Stores(tmp_path, "float16", 6, 2)
    bits = [(name, row, bit) for name, row, bit in stores.flips() if name == left_out]
    bitflip.flip([bits[0][2]])
    assert bitflip.found_wrong(stores.path, [0]) == "verify names rows [], damaged were [0]"


def test_a_repair_that_marks_too_much_is_noticed(tmp_path, monkeypatch):
    stores = Stores(tmp_path, "float32", 6, 2)
    _, row, bit = next(stores.flips())
    bitflip.flip([bit])
    assert bitflip.found_wrong(stores.path, [row]) == ""
    assert bitflip.repaired_wrong(stores, [row]) == ""
    monkeypatch.setattr(
        "pntk.store.writer.RowWriter.forget",
        lambda self, rows, forget=bitflip.RowWriter.forget: forget(self, np.arange(6)),
    )
    bitflip.flip([bit])
    assert "repair marked [0, 1, 2, 3, 4, 5]" in bitflip.repaired_wrong(stores, [row])
