"""A simulated power cut loses nothing that was synced; see benchmarks/reliability/power_cut.py."""

import os

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")

from benchmarks.reliability import creation
from benchmarks.reliability.broken import BROKEN
from benchmarks.reliability.power_cut import Disk, Machine
from benchmarks.reliability.task import make_header
from pntk.store import RowWriter, create

pytestmark = pytest.mark.skipif(not hasattr(os, "pwrite"), reason="the simulated disk is a Unix's")


def machine(place, kind, dtype="float32", instants=100, rows=64):
    found = Machine(place, kind, make_header(rows, 300, dtype), 0, instants)
    found.run()
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nothing_is_lost_or_wrong(tmp_path, dtype):
    found = machine(tmp_path, RowWriter, dtype)
    assert found.failures == []
    assert found.looked >= 100 and found.cuts > 1 and found.partial > 50


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_writer_is_caught(tmp_path, name):
    assert machine(tmp_path, BROKEN[name], instants=1500).failures


def test_writes_past_the_simulated_disk_are_noticed(tmp_path):
    class Sly(RowWriter):
        def sync(self):
            super().sync()
            if not len(self.missing()):
                view = self._views["features"]
                getattr(view, "_view", view)[0, 0] += 1

    found = machine(tmp_path, Sly, rows=8)
    assert found.failures == ["the writer wrote to the map past the simulated disk"]


def test_what_the_disk_may_hold():
    disk = Disk(np.zeros(8192, np.uint8), sector=512)
    disk.write(0, np.full(1024, 1, np.uint8))
    disk.flush(0, 10)  # grows to the page
    disk.write(512, np.full(1024, 2, np.uint8))
    random = np.random.default_rng(0)
    images = [disk.image(random) for _ in range(200)]
    assert all((image[:512] == 1).all() for image in images)  # flushed
    assert {tuple(np.unique(image[512:1024])) for image in images} == {(1,), (2,), (1, 2)}
    assert {int(image[512]) for image in images} == {1, 2}
    assert {(int(i[512]), int(i[1024])) for i in images} == {(1, 0), (1, 2), (2, 0), (2, 2)}
    assert not any(image[1536:].any() for image in images)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are in /proc")
def test_creation_syncs_before_it_renames(tmp_path, monkeypatch):
    assert creation.check_creation(tmp_path) == []
    path = tmp_path / "other.h5"
    monkeypatch.setattr(create, "sync_directory", lambda directory: None)
    found = creation.creation_failures(
        path, lambda: RowWriter.open(path, make_header(4, 4)).close()
    )
    assert found == ["other.h5: its directory was not synced after it got its name"]
