import json
import logging
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from pntk.errors import StoreError
from pntk.store import FeatureStore, RowWriter
from pntk.store import lease as lease_module
from pntk.store.lease import Lease


@pytest.fixture
def lease_file(full_store):
    return full_store.with_name("full.h5.writer")


@pytest.fixture
def elsewhere(lease_file):
    """Put a lease there of a process on another host, of some age."""

    def put(age: float, **changes: object) -> None:
        content = {"host": "far-away", "boot": "b" * 36, "pid": 4321, **changes}
        lease_file.write_text(json.dumps(content))
        now = time.time()
        os.utime(lease_file, (now - age, now - age))

    return put


def test_it_is_there_while_a_writer_is(full_store, lease_file):
    with RowWriter.reopen(full_store):
        content = json.loads(lease_file.read_text())
        assert content["host"] == socket.gethostname() and content["pid"] == os.getpid()
        assert sorted(os.listdir(full_store.parent)) == ["full.h5", "full.h5.writer"]
        assert FeatureStore(full_store).complete
    assert os.listdir(full_store.parent) == ["full.h5"]


def test_host_that_is_alive(full_store, lease_file, elsewhere):
    elsewhere(age=20)
    before = lease_file.read_text()
    with pytest.raises(StoreError, match=r"process 4321 on host far-away is writing") as caught:
        RowWriter.reopen(full_store)
    numbers = r"life (\d+) s ago\); wait .* again in (\d+) s, or delete full.h5.writer$"
    age, rest = map(int, re.search(numbers, str(caught.value)).groups())
    assert 20 <= age <= 40 and 59 <= age + rest <= 61
    assert lease_file.read_text() == before
    assert sorted(os.listdir(full_store.parent)) == ["full.h5", "full.h5.writer"]
    lease_file.unlink()  # as the message says
    RowWriter.reopen(full_store).close()


def test_host_whose_clock_is_ahead(full_store, elsewhere):
    elsewhere(age=-1000)
    with pytest.raises(StoreError, match=r"life 0 s ago\).* try again in 60 s"):
        RowWriter.reopen(full_store)


def test_host_that_has_died(full_store, lease_file, elsewhere):
    elsewhere(age=61)
    with RowWriter.reopen(full_store):
        assert json.loads(lease_file.read_text())["pid"] == os.getpid()
    assert not lease_file.exists()


def test_this_host_needs_no_lease(full_store, lease_file, elsewhere):
    """The lock says that the process has died."""
    elsewhere(age=0, boot=lease_module._boot(), pid=os.getpid() + 1)
    RowWriter.reopen(full_store).close()
    assert not lease_file.exists()


def test_killed_writer_on_this_host(full_store, lease_file):
    code = "import os, sys; from pathlib import Path; from pntk.store.lease import Lease\n"
    code += "Lease(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.run([sys.executable, "-c", code, full_store], env=env)
    assert child.returncode and json.loads(lease_file.read_text())["pid"] != os.getpid()
    RowWriter.reopen(full_store).close()
    assert not lease_file.exists()


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_rubbish_is_nobodys(full_store, lease_file, rubbish):
    lease_file.write_bytes(rubbish)
    RowWriter.reopen(full_store).close()
    assert not lease_file.exists()


def test_opening_that_fails_leaves_none(full_store, monkeypatch):
    monkeypatch.setattr("pntk.store.writer.map_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        RowWriter.reopen(full_store)
    assert os.listdir(full_store.parent) == ["full.h5"]


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_signs_of_life(full_store, lease_file, monkeypatch):
    monkeypatch.setattr(lease_module, "BEAT", 0.01)
    with RowWriter.reopen(full_store):
        for _ in range(2):
            os.utime(lease_file, (1000, 1000))
            wait_until(lambda: lease_file.stat().st_mtime > 1000)


def test_beats_are_well_within_the_time_to_death():
    assert 3 * lease_module.BEAT <= lease_module.STALE


def test_lease_that_is_gone_is_told(full_store, lease_file, monkeypatch, caplog):
    monkeypatch.setattr(lease_module, "BEAT", 0.01)
    with caplog.at_level(logging.WARNING, "pntk"), RowWriter.reopen(full_store):
        lease_file.unlink()
        wait_until(lambda: "full.h5.writer: no sign of life can be given (No such" in caplog.text)


def test_anothers_lease_stays(full_store, lease_file, elsewhere):
    with RowWriter.reopen(full_store):
        elsewhere(age=0)
    assert json.loads(lease_file.read_text())["pid"] == 4321


def test_anothers_lease_is_not_kept_alive(full_store, lease_file, elsewhere, monkeypatch, values):
    """A host that has slept finds another one at work, and leaves it to it."""
    monkeypatch.setattr(lease_module, "BEAT", 0.01)
    header = FeatureStore(full_store).header
    rows, columns = values(header)
    with RowWriter.reopen(full_store, sync_interval=1e9) as writer:
        writer.forget([3])
        cells = {name: cells[[3]] for name, cells in columns.items()}
        writer.write([3], rows[[3]], cells)
        elsewhere(age=500)
        wait_until(lambda: not writer._lease._thread.is_alive())
        assert time.time() - lease_file.stat().st_mtime > 400
        message = r"full.h5: process 4321 on host far-away is writing this file since .* left to it"
        with pytest.raises(StoreError, match=message):
            writer.sync()
        with pytest.raises(StoreError, match=message):
            writer.close()
    assert FeatureStore(full_store).done[3] == 0
    assert json.loads(lease_file.read_text())["pid"] == 4321
    RowWriter.reopen(full_store).close()  # the lock is gone


def test_second_release_does_nothing(full_store, lease_file):
    first = Lease(full_store)
    first.release()
    second = Lease(full_store)
    first.release()
    assert lease_file.exists()
    second.release()
    assert not lease_file.exists()


def test_forked_child_releases_nothing(full_store, lease_file, monkeypatch):
    lease = Lease(full_store)
    with monkeypatch.context() as patch:
        patch.setattr(lease_module.os, "getpid", lambda: -1)
        lease.release()
    assert lease_file.exists()
    lease.release()
    assert not lease_file.exists()


def test_lease_that_cannot_be_removed_does_not_keep_the_lock(full_store, monkeypatch, caplog):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    writer = RowWriter.reopen(full_store)
    with monkeypatch.context() as patch:
        patch.setattr(lease_module.Path, "unlink", refuse)
        writer.close()
    assert "full.h5.writer: cannot be removed (Permission denied)" in caplog.text
    RowWriter.reopen(full_store).close()


def test_folder_that_is_read_only(full_store, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    message = (
        r"cannot write full.h5.writer beside it \(Read-only .*; check the folder's permissions"
    )
    with monkeypatch.context() as patch:
        patch.setattr(lease_module.Path, "write_text", refuse)
        with pytest.raises(StoreError, match=message):
            RowWriter.reopen(full_store)
    RowWriter.reopen(full_store).close()  # the lock is gone


def test_boots_have_names(monkeypatch):
    assert lease_module._boot() == lease_module._boot() != ""

    def refuse(*_):
        raise FileNotFoundError

    monkeypatch.setattr(lease_module.Path, "read_text", refuse)
    assert lease_module._boot() == socket.gethostname()
