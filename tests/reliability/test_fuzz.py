"""Damaged and hostile files do no harm; see benchmarks/reliability/fuzz.py."""

import os
import shutil
import signal
import sys
from collections import Counter

import h5py
import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")
pytest.importorskip("resource", reason="processes cannot be limited here")

from benchmarks.reliability import attacks, examine, fuzz
from benchmarks.reliability.fuzz import FAILED, FOUND, KINDS, MAIN, REFUSED, UNHARMED, Fuzz, Worker
from benchmarks.reliability.rehash import lookup3, object_headers, rehash
from benchmarks.reliability.task import make_header
from benchmarks.reliability.watch import Watch


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return Fuzz(tmp_path_factory.mktemp("fuzz"), seed=0)


@pytest.fixture
def case(cases, tmp_path):
    """A copy of a whole file, by name."""

    def copy(name):
        shutil.copytree(cases.bases[name], tmp_path / name)
        return tmp_path / name / MAIN, cases._expected[name]

    return copy


def test_files_of_every_kind_do_no_harm(tmp_path):
    finding = fuzz.run(120, parent=tmp_path, workers=2, seed=3)
    assert finding.failures == []
    total = finding.rows[-1]
    assert total["files"] == 120
    assert int(total[REFUSED]) > 60 and int(total[FOUND]) > 0 and int(total[UNHARMED]) > 0


def test_every_kind_comes_up(cases):
    assert set(cases._kinds) == set(KINDS)


@pytest.mark.parametrize("name", ["plain", "half", "partial", "long", "joined", "kernel"])
def test_whole_files_are_unharmed_and_others_would_be_noticed(case, name):
    path, expected = case(name)
    assert examine.examine(path, expected) == (UNHARMED, "")
    first = next(iter(expected))
    others = {**expected, first: expected[first] + expected[first].dtype.type(1)}
    shutil.copytree(path.parent, path.parent.with_name("again"))
    outcome, why = examine.examine(path.parent.with_name("again") / MAIN, others)
    if name != "partial":  # its missing rows have been written by now
        assert outcome == FAILED and why.startswith("SilentError")


def test_other_exceptions_are_noticed(case, monkeypatch):
    path, expected = case("plain")
    monkeypatch.setattr(examine, "repair", lambda path: 1 / 0)
    outcome, why = examine.examine(path, expected)
    assert outcome == FAILED and why.startswith("ZeroDivisionError at test_fuzz.py:")


def test_a_worker_that_hangs_or_dies_is_noticed_and_replaced(case):
    path, expected = case("plain")
    worker = Worker(seconds=1.0)
    try:
        os.kill(worker._process.pid, signal.SIGSTOP)
        assert worker.examine(path.parent, expected) == (FAILED, "no answer within 1 s")
        os.kill(worker._process.pid, signal.SIGKILL)
        assert worker.examine(path.parent, expected) == (FAILED, "died by SIGKILL")
        worker._seconds = 20.0
        assert worker.examine(path.parent, expected) == (UNHARMED, "")
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("rows", "width", "message"),
    [
        (2**33, 8, "8,589,934,592 rows of it take 8,589,934,592 bytes, more than there is memory"),
        (2, 2**36, "2 rows take 549,755,813,888 bytes, more than there is memory; read fewer"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="address space cannot be limited")
def test_claims_that_memory_is_too_small_for(tmp_path, rows, width, message):
    attacks.write_sparse(tmp_path / MAIN, make_header(rows, width, "float16"))
    worker = Worker()
    try:
        outcome, why = worker.examine(tmp_path, None)
    finally:
        worker.close()
    assert outcome == REFUSED and message in why


def test_files_that_python_opens_elsewhere_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(examine, "_allowed", [str(tmp_path)])
    monkeypatch.setattr(examine, "_opened_outside", [])
    examine._audit("open", (str(tmp_path / "a"), "r", 0))
    examine._audit("open", (7, "r", 0))
    assert examine._opened_outside == []
    (tmp_path / "link").symlink_to(__file__)
    examine._audit("open", (str(tmp_path / "link"), "r", 0))
    assert examine._opened_outside == [os.path.realpath(__file__)]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no inotify")
def test_files_that_hdf5_opens_elsewhere_are_noticed(tmp_path):
    (tmp_path / "outside").mkdir()
    with h5py.File(tmp_path / "outside" / "secret.h5", "w") as file:
        file["x"] = 1
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink(str(tmp_path / "outside" / "secret.h5"), "x")
    watch = Watch(tmp_path / "outside")
    try:
        with h5py.File(tmp_path / "link.h5") as file:
            assert watch.opened() == []
            assert file["x"][()] == 1
        assert "secret.h5" in watch.opened()
    finally:
        watch.close()


def test_checksums_of_metadata_can_be_made_right(case):
    path, _ = case("plain")
    assert lookup3(b"Four score and seven years ago") == 0x17770551  # from lookup3.c
    content = bytearray(path.read_bytes())
    whole = bytes(content)
    assert len(object_headers(whole)) == 7
    rehash(content)
    assert content == whole
    at = content.index(b"header")
    content[at] = ord("H")
    path.write_bytes(content)
    with pytest.raises((OSError, KeyError), match="checksum"), h5py.File(path) as file:
        list(file.attrs)
    rehash(content)
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert "Header" in file.attrs


def test_accidents_differ_from_the_whole_file(cases, tmp_path):
    """A mutation that changes nothing tests nothing."""
    changed: Counter[str] = Counter()
    for number in range(60):
        kind, base, place, _ = cases.make(number)
        whole = {p.name: p.read_bytes() for p in cases.bases[base].iterdir()}
        if not (place / MAIN).is_file() or (place / MAIN).stat().st_size > 2**20:
            changed[kind] += 1
        else:
            found = {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()}
            changed[kind] += found != whole
        shutil.rmtree(place)
    assert changed.total() > 50
    assert np.isin(list(changed), list(KINDS)).all()
