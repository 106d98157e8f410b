import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pntk.errors import StoreError
from pntk.store import DONE, SKIPPED, FeatureStore, RowWriter, join
from pntk.store import writer as writer_module
from pntk.store.joined import write_joined
from pntk.store.part import open_part

FOLDER = Path(__file__).parent


def dataset_bytes(path: Path) -> dict[str, bytes]:
    layout, content = open_part(path).layout, path.read_bytes()
    return {name: content[e.offset : e.offset + e.nbytes] for name, e in layout.extents.items()}


@pytest.fixture
def header(make_header):
    return make_header()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.h5"


# --- writing


def test_rows_in_any_order(path, header, values):
    rows, columns = values(header)
    order = np.random.default_rng(1).permutation(10)
    with RowWriter.open(path, header) as writer:
        for part in np.array_split(order, 3):
            writer.write(part, rows[part], {name: cells[part] for name, cells in columns.items()})
    with FeatureStore(path) as store:
        assert store.complete and store.verify().ok
        np.testing.assert_array_equal(store.numpy(), rows)
        np.testing.assert_array_equal(store.labels, columns["labels"])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_torch_and_numpy_give_the_same_bytes(tmp_path, make_header, values, dtype):
    header = make_header(dtype=dtype)
    rows, columns = values(header)
    with RowWriter.open(tmp_path / "numpy.h5", header) as writer:
        writer.write(list(range(10)), rows, columns)
    with RowWriter.open(tmp_path / "torch.h5", header) as writer:
        strided = torch.tensor(rows.T.copy(), requires_grad=True).T
        cells = {name: torch.tensor(column) for name, column in columns.items()}
        writer.write(torch.arange(10, dtype=torch.int32), strided, cells)
    assert dataset_bytes(tmp_path / "numpy.h5") == dataset_bytes(tmp_path / "torch.h5")


def test_skipped_rows_become_zeros(path, header, values):
    rows, columns = values(header)
    rows[4] = np.nan
    with RowWriter.open(path, header) as writer:
        writer.write(np.arange(10), rows, columns, skipped=torch.arange(10) == 4)
        assert writer.missing().size == 0
    store = FeatureStore(path)
    assert store.done[4] == SKIPPED and not store[4].any() and store.verify().ok


def test_empty_batch(path, header):
    with RowWriter.open(path, header) as writer:
        writer.write([], np.zeros((0, 6), np.float32), {"labels": [], "reweighting": []})
        assert writer.missing().tolist() == list(range(10))


def test_missing_leaves_out_rows_that_wait_for_a_sync(path, header, values):
    rows, columns = values(header)
    with RowWriter.open(path, header, sync_interval=1e9) as writer:
        writer.write([3], rows[:1], {name: cells[:1] for name, cells in columns.items()})
        assert FeatureStore(path).done[3] == 0
        assert writer.missing().dtype == np.int64
        assert writer.missing().tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        writer.sync()
        assert FeatureStore(path).done[3] == DONE


def test_sync_interval(path, header, values, monkeypatch):
    rows, columns = values(header)
    now = 100.0
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now)
    with RowWriter.open(path, header, sync_interval=5) as writer:
        for row, now in enumerate([101.0, 104.9, 105.0, 106.0]):  # noqa: B007 (read by the clock)
            cells = {name: column[[row]] for name, column in columns.items()}
            writer.write([row], rows[[row]], cells)
        assert FeatureStore(path).done.tolist() == [DONE] * 3 + [0] * 7


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_data_is_synced_before_done_is_set(path, make_header, values, monkeypatch, dtype):
    header = make_header(dtype=dtype)
    rows, columns = values(header)
    events = []
    flush = RowWriter._flush

    def spy(self, name, first, last):
        events.append((name, first, last, self._views["done"].any()))
        flush(self, name, first, last)

    monkeypatch.setattr(RowWriter, "_flush", spy)
    with RowWriter.open(path, header) as writer:
        writer.write([2, 5], rows[:2], {name: cells[:2] for name, cells in columns.items()})
    data = ["features", "labels", "reweighting", "checksums"]
    if dtype == "float16":
        data.insert(3, "scales")
    assert events == [*((name, 2, 5, False) for name in data), ("done", 2, 5, True)]


def test_a_row_that_is_written_again_is_missing_meanwhile(full_store, header, values, monkeypatch):
    rows, columns = values(header)
    with RowWriter.open(full_store, header, sync_interval=1e9) as writer:
        for _ in range(2):  # done in the file, then only waiting for a sync
            writer.write([1], rows[:1], {name: cells[:1] for name, cells in columns.items()})
            assert FeatureStore(full_store).done[1] == 0
        monkeypatch.setattr(writer_module, "row_checksums", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.write([1], rows[:1] + 1, {name: cells[:1] for name, cells in columns.items()})
        assert writer.missing().tolist() == [1]
    report = FeatureStore(full_store).verify()
    assert report.ok and report.missing == 1


def test_forget(full_store, header):
    with RowWriter.open(full_store, header) as writer:
        writer.forget([])
        writer.forget([7, 2])
        assert writer.missing().tolist() == [2, 7]
    expected = np.full(10, DONE)
    expected[[2, 7]] = 0
    np.testing.assert_array_equal(FeatureStore(full_store).done, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [0.0, 1.0]}, r"indices are float64 \(2,\), expected integers"),
        ({"indices": [True, False]}, "indices are bool"),
        ({"indices": [[0, 1]]}, r"indices are int64 \(1, 2\)"),
        ({"indices": [0, 10]}, "index 10 is outside the store's rows 0 to 9"),
        ({"indices": [-1, 0]}, "index -1 is outside"),
        ({"indices": [3, 3]}, "indices name a row twice"),
        ({"rows": np.zeros((2, 5), np.float32)}, r"rows are \(2, 5\), expected \(2, 6\)"),
        ({"rows": np.zeros((3, 6), np.float32)}, r"rows are \(3, 6\), expected \(2, 6\)"),
        ({"rows": np.zeros((2, 6))}, "rows are float64, the store holds float32; convert"),
        ({"rows": torch.zeros(2, 6, dtype=torch.bfloat16)}, "rows cannot become a NumPy array"),
        ({"columns": None}, r"columns are \[\], expected \['labels', 'reweighting'\]"),
        ({"columns": {"labels": [0, 0], "more": [0, 0]}}, "columns are .*'more'"),
        ({"columns": {"labels": [0], "reweighting": [0, 0]}}, r"'labels' has shape \(1,\)"),
        ({"columns": {"labels": [0.5, 0], "reweighting": [0, 0]}}, "'labels' is float64"),
        ({"skipped": [1, 0]}, r"skipped is int64 \(2,\), expected bool \(2,\)"),
        ({"skipped": [True]}, r"skipped is bool \(1,\)"),
    ],
)
def test_write_refuses_and_writes_nothing(path, header, changes, message):
    arguments = {
        "indices": [0, 1],
        "rows": np.ones((2, 6), np.float32),
        "columns": {"labels": [5, 5], "reweighting": [1.0, 1.0]},
        "skipped": None,
    }
    with RowWriter.open(path, header) as writer:
        before = path.read_bytes()
        with pytest.raises(StoreError, match=message):
            writer.write(**{**arguments, **changes})
        assert path.read_bytes() == before


def test_column_values_must_fit(path, make_header):
    header = make_header(columns={"flag": "uint8"})
    with RowWriter.open(path, header) as writer:
        row = np.zeros((1, 6), np.float32)
        with pytest.raises(StoreError, match="'flag' has values that uint8 cannot hold"):
            writer.write([0], row, {"flag": np.array([300], np.uint16)})


# --- closing


def test_rows_survive_an_exception(path, header, values):
    rows, columns = values(header)
    with pytest.raises(ZeroDivisionError), RowWriter.open(path, header) as writer:
        writer.write(np.arange(10), rows, columns)
        raise ZeroDivisionError
    assert FeatureStore(path).complete


def test_closed_writer(path, header, values):
    rows, columns = values(header)
    writer = RowWriter.open(path, header)
    writer.close()
    writer.close()
    for use in (lambda: writer.write(np.arange(10), rows, columns), writer.sync):
        with pytest.raises(StoreError, match="the writer is closed; open it again"):
            use()
    assert writer.header == header


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_writer_that_is_dropped_lets_go(path, header):
    RowWriter.open(path, header)
    gc.collect()
    assert os.listdir(path.parent) == ["rows.h5"]
    RowWriter.open(path, header).close()


def test_disk_that_refuses_data(path, header, values, monkeypatch):
    rows, columns = values(header)

    class BadMap:
        def flush(self, *_):
            raise OSError(5, "Input/output error")

    message = r"disk refused the data \(Input/output error\)"
    with (
        pytest.raises(StoreError, match=message),
        RowWriter.open(path, header, sync_interval=0) as writer,
    ):
        writer._map = BadMap()
        writer.write(np.arange(10), rows, columns)
    assert FeatureStore(path).num_done == 0
    RowWriter.open(path, header).close()  # the lock is gone


def test_data_that_the_disk_has_lost_is_never_marked(path, header, values, monkeypatch):
    """A system reports a failed write once; the sync after it succeeds."""
    rows, columns = values(header)
    flush, failures = RowWriter._flush, [StoreError("the disk refused the data")]

    def failing(self, *arguments):
        if failures:
            raise failures.pop()
        flush(self, *arguments)

    monkeypatch.setattr(RowWriter, "_flush", failing)
    with RowWriter.open(path, header) as writer:
        writer.write(np.arange(10), rows, columns)
        with pytest.raises(StoreError, match="refused"):
            writer.sync()
        assert writer.missing().tolist() == list(range(10))
    assert FeatureStore(path).num_done == 0


# --- resuming


def test_resume(path, header, values):
    rows, columns = values(header)
    first, rest = np.arange(4), np.arange(4, 10)
    with RowWriter.open(path, header) as writer:
        writer.write(first, rows[first], {name: cells[first] for name, cells in columns.items()})
    with RowWriter.open(path, header) as writer:
        assert writer.missing().tolist() == rest.tolist()
        writer.write(rest, rows[rest], {name: cells[rest] for name, cells in columns.items()})
    assert FeatureStore(path).complete and FeatureStore(path).verify().ok


def test_info_is_not_compared_and_stays(full_store, make_header):
    with RowWriter.open(full_store, make_header(info={"pntk": "9"})) as writer:
        assert writer.header.info == {"pntk": "0"}


def test_no_resume(full_store, header):
    before = full_store.read_bytes()
    with pytest.raises(StoreError, match=r"exists and resume=False; .* resume=True, or delete"):
        RowWriter.open(full_store, header, resume=False)
    assert full_store.read_bytes() == before


def test_no_resume_when_the_file_appears_meanwhile(full_store, header, monkeypatch):
    monkeypatch.setattr(writer_module.os.path, "exists", lambda _: False)
    with pytest.raises(StoreError, match="exists and resume=False"):
        RowWriter.open(full_store, header, resume=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 11}, "data set's length has changed: the file has 10 rows, now 11"),
        ({"weights": "ff"}, "model's weights differ from those that made the rows"),
        ({"projection": {"family": "hadamard", "proj_dim": 6, "seed": 1}}, "projection.seed is 0"),
        ({"dtype": "float64"}, "dtype is 'float32' in the file, 'float64' was asked"),
        ({"columns": {}}, "columns.labels is 'int64' in the file, 'absent' was asked"),
        ({"params": ()}, r"params is 'conv.weight \[8, 3, 3, 3\] \(parameter 1 of 2\)'"),
    ],
)
def test_resume_refuses_another_header(full_store, make_header, changes, message):
    before = full_store.read_bytes()
    with pytest.raises(StoreError, match=f"cannot resume: .*{message}.*delete the file"):
        RowWriter.open(full_store, make_header(**changes))
    assert full_store.read_bytes() == before


def test_rows_in_an_unknown_state_are_made_again(full_store, header, values, flip):
    rows, columns = values(header)
    flip(full_store, "done", 2)
    flip(full_store, "done", 7, bit=5)
    with RowWriter.open(full_store, header) as writer:
        assert writer.missing().tolist() == [2, 7]
        writer.write([2, 7], rows[[2, 7]], {name: cells[[2, 7]] for name, cells in columns.items()})
    store = FeatureStore(full_store)
    assert store.verify().ok and store.complete
    assert store.done[[2, 7]].tolist() == [DONE, DONE]


def test_reopen(make_store):
    path = make_store("s.h5", missing=[1, 2])
    with RowWriter.reopen(path, sync_interval=0) as writer:
        assert writer.missing().tolist() == [1, 2]
        assert writer.header == FeatureStore(path).header
        writer.write([2], np.ones((1, 6), np.float32), {"labels": [3], "reweighting": [0.5]})
        assert FeatureStore(path).labels[2] == 3
    assert FeatureStore(path).num_done == 9
    assert os.listdir(path.parent) == ["s.h5"]


def test_reopen_makes_nothing(path):
    with pytest.raises(StoreError, match=r"rows.h5: no such file; featurize makes it"):
        RowWriter.reopen(path)
    assert not path.exists()


def test_joined_files_are_not_written_to(tmp_path, make_store):
    join(tmp_path / "joined.h5", [make_store("a.h5"), make_store("b.h5")])
    header = FeatureStore(tmp_path / "joined.h5").header
    before = (tmp_path / "joined.h5").read_bytes()
    for use in (RowWriter.reopen, lambda path: RowWriter.open(path, header)):
        with pytest.raises(StoreError, match=r"joins shards and holds no rows .*write to the shar"):
            use(tmp_path / "joined.h5")
    assert (tmp_path / "joined.h5").read_bytes() == before


@pytest.mark.parametrize("interval", [-1, float("nan")])
def test_bad_sync_interval(path, header, interval):
    with pytest.raises(StoreError, match="expected seconds of at least 0"):
        RowWriter.open(path, header, sync_interval=interval)


def test_file_that_cannot_be_written(full_store, header, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writer_module, "open", refuse, raising=False)
    with pytest.raises(StoreError, match=r"cannot be written to \(Permission denied\)"):
        RowWriter.open(full_store, header)


# --- locking


def test_one_writer_in_a_process(path, header):
    with (
        RowWriter.open(path, header),
        pytest.raises(StoreError, match="another process is writing this file"),
    ):
        RowWriter.open(path, header)
    RowWriter.open(path, header).close()


def test_foreign_writers_are_kept_out_and_readers_let_in(path, header):
    with RowWriter.open(path, header):
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r+")
        with h5py.File(path, "r", locking=False) as file:
            assert not file["done"][:].any()


def test_file_replaced_before_the_lock(full_store, header, monkeypatch):
    lock = writer_module.lock

    def replace_and_lock(file, path, verb):
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        os.replace(copy, path)
        lock(file, path, verb)

    monkeypatch.setattr(writer_module, "lock", replace_and_lock)
    with pytest.raises(StoreError, match="just replaced"):
        RowWriter.open(full_store, header)


def test_file_system_without_locks(path, header, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    RowWriter.open(path, header).close()

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StoreError, match=r"cannot be locked \(No locks available\); use a local"):
        RowWriter.open(path, header)


def test_two_creators(tmp_path, path, header):
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / "rows.h5.creating", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process is creating this file"):
            RowWriter.open(path, header)


# --- kills

CHILD = """
import sys, time
import numpy as np
from pntk.store import RowWriter, StoreHeader

header = StoreHeader.from_json(open(sys.argv[2]).read())
random = np.random.default_rng(0)
rows = random.standard_normal((header.rows, header.width)).astype("float32")
with RowWriter.open(sys.argv[1], header, sync_interval=0.01) as writer:
    todo = np.random.default_rng(len(writer.missing())).permutation(writer.missing())
    print("ready", flush=True)
    if len(sys.argv) > 3:
        sys.stdin.read()
    for part in np.array_split(todo, max(1, len(todo) // 7)):
        writer.write(part, rows[part], {"labels": part % 5 - 1}, skipped=part % 50 == 3)
        time.sleep(0.001)
"""


@pytest.fixture
def start(path, make_header, tmp_path):
    """Start a process that fills a store; kill it if it is left."""
    header = make_header(rows=1500, width=300, columns={"labels": "int64"})
    (tmp_path / "header.json").write_text(header.to_json())
    children = []

    def run(target: Path, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", CHILD, target, tmp_path / "header.json", *arguments]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        children.append(child)
        assert child.stdout.readline() == b"ready\n"
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def test_lock_between_processes(path, start):
    child = start(path, "wait")
    header = FeatureStore(path).header
    with pytest.raises(StoreError, match="another process is writing this file"):
        RowWriter.open(path, header)
    child.send_signal(signal.SIGKILL)
    child.wait()
    RowWriter.open(path, header).close()


def test_reading_while_a_writer_is_at_work(path, tmp_path, start):
    child = start(path, "wait")
    expected = np.random.default_rng(0).standard_normal((1500, 300)).astype(np.float32)
    expected[np.arange(1500) % 50 == 3] = 0
    mapped = FeatureStore(path)
    write_joined(tmp_path / "joined.h5", mapped.header, mapped._parts)
    stores = [mapped, FeatureStore(path, check=True), FeatureStore(tmp_path / "joined.h5")]
    child.stdin.close()
    child.stdin = None  # for communicate()
    seen = set()
    while child.poll() is None or not mapped.complete:
        for store in stores:
            there = np.flatnonzero(store.done)
            seen.add(len(there))
            picked = there[:: max(1, len(there) // 100)]
            np.testing.assert_array_equal(store[picked].numpy(), expected[picked])
            assert (store.labels[there] == there % 5 - 1).all()
            report = store.verify()
            assert report.ok, report
    assert child.returncode == 0
    assert len(seen) > 3, "the writer was too fast: change the timing"


def test_killed_many_times_equals_uninterrupted(path, tmp_path, start):
    random = np.random.default_rng()
    kills_midway, before = 0, 0
    for turn in range(5):
        child = start(path)
        store = FeatureStore(path)
        while turn % 2 == 0 and store.num_done == before and child.poll() is None:
            time.sleep(0.001)  # a slow disk takes long over its first sync
        time.sleep(random.uniform(0.0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        report = store.verify()
        assert report.ok, report
        assert store.num_done >= before
        kills_midway += before < store.num_done < len(store)
        before = store.num_done
    assert kills_midway, "no kill fell into the writing: change the timing"
    assert start(path).wait() == 0
    assert start(tmp_path / "calm.h5").wait() == 0
    assert dataset_bytes(path) == dataset_bytes(tmp_path / "calm.h5")
    assert FeatureStore(path).complete
