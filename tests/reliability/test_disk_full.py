"""Full disks; see benchmarks/reliability/disk_full.py."""

import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")
pytest.importorskip("resource", reason="the size of files cannot be limited here")

from benchmarks.reliability import disk_full
from benchmarks.reliability.disk_full import LIMIT, Disk
from benchmarks.reliability.report import Finding, Unavailable
from benchmarks.reliability.small_disks import filled, limited


@pytest.mark.parametrize("kind", ["tmpfs", LIMIT])
def test_on_a_disk_that_is_full(tmp_path, kind):
    try:
        found = disk_full._apart(kind, tmp_path)
    except Unavailable as reason:
        pytest.skip(f"no {kind}: {reason}")
    assert found["failures"] == []
    tried = [row["tried"] for row in found["rows"]]
    assert len(tried) == {"tmpfs": 12, LIMIT: 7}[kind]
    outcomes = {row["tried"]: row["outcome"] for row in found["rows"]}
    reason = {"tmpfs": "No space left on device", LIMIT: "File too large"}[kind]
    assert outcomes["join when it is full"].endswith(f"rows.h5: cannot be created ({reason})")


@pytest.fixture
def disk(tmp_path):
    return Disk("a folder", tmp_path, filled, Finding("disk_full", ""))


def test_work_that_is_not_refused_is_noticed(disk):
    disk.refused("nothing", lambda: None)
    disk.refused("something else", lambda: 1 / 0)
    disk.refused("a file", lambda: (disk.folder / "left").touch())
    assert disk._finding.failures == [
        "a folder, nothing: no error",
        "a folder, something else: ZeroDivisionError: division by zero",
        "a folder, a file: no error",
        "a folder, a file: left ['left']",
    ]


def test_a_limit_on_the_size_of_files_is_lifted_again(tmp_path):
    with limited(tmp_path), pytest.raises(OSError, match="File too large"):
        (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "a").write_bytes(bytes(1000))
