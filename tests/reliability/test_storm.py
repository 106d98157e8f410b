"""Killed processes leave whole files; see benchmarks/reliability/storm.py."""

import os

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks.reliability import storm, storm_ranks
from benchmarks.reliability.children import WRITING
from benchmarks.reliability.report import Finding
from benchmarks.reliability.task import contents, make_header, write_missing
from pntk.store import RowWriter

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


@pytest.fixture
def target(tmp_path):
    """A store of ten rows, under fire."""
    path = tmp_path / "rows.h5"
    write_missing(path, make_header(10, 6))
    return storm.Target(path, contents(path), Finding("storm", ""), "a test")


def failures(target):
    return target._finding.failures


def test_killed_processes_leave_whole_files(tmp_path):
    finding = storm.run(3, parent=tmp_path, rows=600, processes=False)
    assert finding.failures == []
    assert [row["kills"] for row in finding.rows] == [3, 3, 7, 3, 3]
    assert all(f"{place} 1" in str(finding.rows[2]) for place in WRITING)


def test_one_rank_of_several(tmp_path):
    finding = Finding("storm", "")
    storm_ranks.run(tmp_path / "ranks", 2, 0, finding, rows=600)
    assert finding.failures == []
    assert finding.rows[0]["kills"] == 2


def test_a_wrong_byte_is_noticed(target):
    assert target.check() == 10 and not failures(target)
    content = bytearray(target.path.read_bytes())
    content[content.index(contents(target.path)["features"].tobytes())] ^= 1
    target.path.write_bytes(content)
    target.check()
    assert "is damaged" in failures(target)[0]
    assert "rows [0] are done and are others" in failures(target)[1]


def test_a_lost_row_is_noticed(target):
    target.check()
    with RowWriter.reopen(target.path) as writer:
        writer.forget([3])
    assert target.check() == -1
    assert failures(target) == [f"a test: {target.path}: rows that were done are lost"]
    target.check_whole()
    assert "rows are missing in the end" in failures(target)[1]


def test_a_file_that_does_not_open_is_noticed(target):
    target.path.write_bytes(target.path.read_bytes()[:5000])
    target.check()
    assert "does not open" in failures(target)[0]


def test_files_that_are_left_over_are_noticed(target, tmp_path):
    target.leave_rubbish(np.random.default_rng(0), tmp_path / "other.h5")
    target.check_whole()
    assert "are left over" in failures(target)[0]
