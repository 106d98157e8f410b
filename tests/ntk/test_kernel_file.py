import contextlib
import json
import os
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pntk.errors import StoreError
from pntk.ntk import kernel_file
from pntk.ntk.kernel_file import (
    KernelHeader,
    KernelWriter,
    open_kernel,
    partial_path,
    tiles_there,
)
from pntk.store.layout import DONE

A = torch.arange(42.0).reshape(7, 6)


def make_header(**changes):
    values = {
        "shape": (7, 7),
        "dtype": "float32",
        "normalize": False,
        "symmetric": True,
        "tile": 3,
        "rows": {"rows": 7, "width": 6, "projection.seed": 0, "content": "ab"},
        "columns": None,
    }
    return KernelHeader(**{**values, **changes})


CROSS = {"shape": (7, 5), "symmetric": False, "columns": {"content": "cd"}}


def kernel_of(header):
    return (A @ (A if header.symmetric else A[:5]).T).to(getattr(torch, header.dtype))


def fill(writer, only=None):
    header, kernel = writer.header, kernel_of(writer.header)
    for i in range(header.grid[0]):
        for j in writer.missing(i):
            if only is None or (i, j) in only:
                rows, columns = (slice(t * header.tile, (t + 1) * header.tile) for t in (i, j))
                writer.write(i, j, kernel[rows, columns])


def make(path, **changes):
    with KernelWriter.open(path, make_header(**changes)) as writer:
        fill(writer)
        return writer.finish()


@pytest.fixture
def whole(tmp_path):
    return make(tmp_path / "kernel.h5")


# ---- writing and reading -----------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"dtype": "float64"}, CROSS, {"tile": 1}, {"tile": 9}])
def test_a_kernel_comes_back(tmp_path, changes):
    path = make(tmp_path / "kernel.h5", **changes)
    expected = kernel_of(make_header(**changes)).numpy()
    kernel = open_kernel(path)
    assert kernel.path == path and kernel.header == make_header(**changes)
    assert np.array_equal(kernel.values, expected) and kernel.values.dtype == expected.dtype
    assert np.array_equal(kernel.read(2, 6), expected[2:6])
    assert np.array_equal(kernel.read(5, 100), expected[5:])
    assert np.array_equal(kernel.read(-3, -1), expected[-3:-1])
    assert kernel.read(9, 12).shape == kernel.read(3, 2).shape == (0, expected.shape[1])
    kernel.check()
    with h5py.File(path) as file:
        assert np.array_equal(file["ntk"][:], expected)
        assert (file["done"][:] == DONE).all()
        assert file.attrs["format"] == b"pntk-kernel" and file.attrs["format_version"] == 1
        assert json.loads(file.attrs["header"])["tile"] == make_header(**changes).tile
        assert zlib.crc32(file.attrs["header"]) == file.attrs["header_crc32"]


def test_values_are_read_only(whole):
    with pytest.raises(ValueError, match="read-only"):
        open_kernel(whole).values[0, 0] = 1


def test_equal_work_gives_equal_files(tmp_path, whole):
    assert make(tmp_path / "again.h5").read_bytes() == whole.read_bytes()


def test_small_pieces(tmp_path, monkeypatch, whole):
    content = whole.read_bytes()
    monkeypatch.setattr(kernel_file, "_PIECE", 20)
    assert make(tmp_path / "again.h5").read_bytes() == content
    open_kernel(whole).check()


def test_writes_that_take_only_a_part(tmp_path, whole):
    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, view):
            return self.file.write(view[:3])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with KernelWriter.open(tmp_path / "slow.h5", make_header()) as writer:
        writer._file = Slow(writer._file)
        fill(writer)
        writer._file = writer._file.file
        writer.finish()
    assert (tmp_path / "slow.h5").read_bytes() == whole.read_bytes()


def test_tiles_are_synced_before_they_are_marked(tmp_path, monkeypatch):
    """Whatever is on disk when the power fails: marks follow the data they stand for."""
    events, fsync, rename, write_at = [], os.fsync, os.replace, kernel_file._write_at
    with KernelWriter.open(tmp_path / "kernel.h5", make_header()) as writer:
        done = writer._extents["done"].offset

        def recorded(file, offset, values):
            events.append("mark" if done <= offset < done + 9 else "data")
            write_at(file, offset, values)

        monkeypatch.setattr(kernel_file, "_write_at", recorded)
        monkeypatch.setattr(os, "fsync", lambda number: events.append("sync") or fsync(number))
        monkeypatch.setattr(os, "replace", lambda *_: events.append("name") or rename(*_))
        fill(writer, {(0, 0), (0, 1)})
        assert "mark" not in events and "sync" not in events
        assert writer.missing(0) == [0, 1, 2]
        writer.sync()
        first = events.index("sync")
        assert "mark" not in events[:first]
        assert events[first:] == ["sync", "mark", "mark", "sync"]
        assert writer.missing(0) == [2]
        events.clear()
        writer.sync()
        assert not events
        fill(writer)
        writer.sync()
        events.clear()
        writer.finish()
        assert events == ["mark"] * 3 + ["sync", "name", "sync"]  # the last is the folder's


def test_tiles_are_marked_every_few_seconds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(kernel_file.time, "monotonic", lambda: now[0])
    with KernelWriter.open(tmp_path / "kernel.h5", make_header()) as writer:
        fill(writer, {(0, 0)})
        now[0] = 4.9
        fill(writer, {(0, 1)})
        assert tiles_there(writer.out) == (0, 6)
        now[0] = 5.1
        fill(writer, {(0, 2)})
        assert tiles_there(writer.out) == (3, 6)
        fill(writer, {(1, 1)})
        assert tiles_there(writer.out) == (3, 6)


@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_a_stop_at_any_write(tmp_path, monkeypatch, whole, interval):
    """Between a tile and its mirror image, between marks, while the file is finished."""
    monkeypatch.setattr(kernel_file, "SYNC_INTERVAL", interval)
    original, out = kernel_file._write_at, tmp_path / "other.h5"
    for stop in range(1, 1000):
        calls = []

        def write_at(*args, calls=calls, stop=stop):
            calls.append(args)
            if len(calls) == stop:
                raise KeyboardInterrupt
            original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(kernel_file, "_write_at", write_at)
            with contextlib.suppress(KeyboardInterrupt):
                make(out)
        if len(calls) < stop:
            break
        make(out)
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()
    assert stop == 40  # 21 lines, 9 checksums, 6 marks and the 3 rows of marks in the end


def test_tiles_there(tmp_path):
    out = tmp_path / "kernel.h5"
    assert tiles_there(out) is None
    for changes, total in (({}, 6), (CROSS, 6), ({"tile": 2, **CROSS}, 12)):
        with KernelWriter.open(out, make_header(**changes)) as writer:
            fill(writer, {(1, 1), (0, 1)})
        assert tiles_there(out) == (2, total)
        partial_path(out).unlink()
    os.replace(make(out), partial_path(out))  # marks of mirror images do not count
    assert tiles_there(out) == (6, 6)


def test_resuming_keeps_the_tile_of_the_file(tmp_path, whole):
    out = tmp_path / "other.h5"
    with KernelWriter.open(out, make_header()) as writer:
        fill(writer, {(0, 2), (1, 1)})
    with KernelWriter.open(out, make_header(tile=5)) as writer:
        assert writer.header.tile == 3
        assert [writer.missing(i) for i in range(3)] == [[0, 1], [2], [2]]
        fill(writer)
        writer.finish()
    assert out.read_bytes() == whole.read_bytes()


# ---- one process at a time ---------------------------------------------------------------------


def test_a_second_writer_is_refused(tmp_path):
    out = tmp_path / "kernel.h5"
    with KernelWriter.open(out, make_header()) as writer:
        with pytest.raises(StoreError, match=r"kernel.h5.partial: another process is writing this"):
            KernelWriter.open(out, make_header())
        fill(writer)
        writer.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["kernel.h5"]


def test_a_writer_on_another_host_is_refused(tmp_path):
    out = tmp_path / "kernel.h5"
    lease = tmp_path / "kernel.h5.partial.writer"
    lease.write_text(json.dumps({"host": "far", "boot": "x", "pid": 3}))
    with pytest.raises(StoreError, match="process 3 on host far is writing this file"):
        KernelWriter.open(out, make_header())
    lease.unlink()
    make(out)


def test_a_kernel_that_lacks_a_tile_gets_no_name(tmp_path):
    with KernelWriter.open(tmp_path / "kernel.h5", make_header()) as writer:
        fill(writer, {(0, 0), (0, 1), (0, 2), (1, 1), (2, 2)})
        with pytest.raises(StoreError, match=r"partial: tile \(1, 2\) is missing; write it first"):
            writer.finish()
    assert not (tmp_path / "kernel.h5").exists()


def test_closing_twice(tmp_path):
    writer = KernelWriter.open(tmp_path / "kernel.h5", make_header())
    writer.close()
    writer.close()


# ---- what can go wrong -------------------------------------------------------------------------


def test_what_exists_is_never_replaced(tmp_path, whole):
    with pytest.raises(StoreError, match=r"kernel\.h5 exists; give another path"):
        KernelWriter.open(whole, make_header())
    out = tmp_path / "other.h5"
    with KernelWriter.open(out, make_header()) as writer:
        fill(writer)
        out.write_text("mine")
        with pytest.raises(StoreError, match=r"other\.h5 exists"):
            writer.finish()
    assert out.read_text() == "mine"
    out.unlink()
    with KernelWriter.open(out, make_header()) as writer:
        writer.finish()
    open_kernel(out).check()


def test_a_kernel_that_was_finished_meanwhile(tmp_path, monkeypatch):
    out = tmp_path / "kernel.h5"
    create = kernel_file._create

    def late(path, header):
        created = create(path, header)
        out.write_text("whole")
        return created

    monkeypatch.setattr(kernel_file, "_create", late)
    with pytest.raises(StoreError, match=r"kernel\.h5 exists"):
        KernelWriter.open(out, make_header())
    assert [file.name for file in tmp_path.iterdir()] == ["kernel.h5"]


NO_SPACE = "kernel.h5.partial: a kernel of 7 x 7 takes 277 bytes and {} are free in .*; take fewer"


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_full_disk_is_noticed_before_any_work(tmp_path, monkeypatch, code):
    def full(*_):
        raise OSError(getattr(kernel_file.errno, code), "no")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match=NO_SPACE.format("[0-9,]+")):
        make(tmp_path / "kernel.h5")
    assert not list(tmp_path.iterdir())


def test_too_little_space(tmp_path, monkeypatch):
    usage = kernel_file.shutil.disk_usage(tmp_path)._replace(free=99)
    monkeypatch.setattr(kernel_file.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=NO_SPACE.format(99)):
        make(tmp_path / "kernel.h5")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(StoreError, match="missing does not exist; create it first"):
        make(tmp_path / "missing" / "kernel.h5")


def test_a_beginning_that_cannot_be_written_to(tmp_path, monkeypatch):
    partial_path(tmp_path / "kernel.h5").mkdir()
    with pytest.raises(StoreError, match=r"kernel.h5.partial: cannot be written to \("):
        make(tmp_path / "kernel.h5")


@pytest.mark.parametrize("broken", ["_write_at", "fsync"])
def test_a_disk_that_refuses_data(tmp_path, monkeypatch, broken):
    out = tmp_path / "kernel.h5"
    with KernelWriter.open(out, make_header()) as writer:
        fill(writer, {(0, 0)})

    failures = [OSError(5, "Input/output error")]  # only once: the kernel forgets what it has lost

    def fail(*args):
        if failures:
            raise failures.pop()
        original(*args)

    message = r"kernel.h5.partial: the disk refused the data \(Input/output error\); the tiles that"
    module = os if broken == "fsync" else kernel_file
    original = getattr(module, broken)
    with pytest.raises(StoreError, match=message), monkeypatch.context() as patch:
        patch.setattr(module, broken, fail)
        make(out)
    assert tiles_there(out) == (1, 6)
    make(out)
    open_kernel(out).check()


def test_a_rename_that_fails(tmp_path, monkeypatch):
    out = tmp_path / "kernel.h5"
    with KernelWriter.open(out, make_header()) as writer:
        fill(writer)

        def fail(*_):
            raise OSError(1, "not permitted")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(StoreError, match=r"is whole and cannot be renamed .*; rename it"):
            writer.finish()


def test_files_that_are_not_ours(tmp_path):
    out = tmp_path / "kernel.h5"
    partial_path(out).write_text("mine")
    with pytest.raises(StoreError, match=r"kernel.h5.partial: is not an HDF5 file"):
        make(out)
    assert partial_path(out).read_text() == "mine"
    with h5py.File(partial_path(out), "w") as file:  # as earlier versions left them
        file["ntk"] = np.zeros((7, 7))
    with pytest.raises(StoreError, match="is an HDF5 file but not a pntk kernel"):
        make(out)
    with pytest.raises(StoreError, match="no such file"):
        open_kernel(out)


# ---- headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (7, 0)}, r"shape is .7, 0., expected two positive integers"),
        ({"shape": (7.0, 7)}, "shape is"),
        ({"shape": 7}, "shape is 7"),
        ({"shape": (7, 6)}, "rows and columns do not fit symmetric = True"),
        ({"dtype": "int8"}, "dtype is 'int8', expected one of"),
        ({"dtype": ["float32"]}, "dtype is"),
        ({"tile": 0}, "tile is 0, expected a positive integer"),
        ({"tile": True}, "tile is True"),
        ({"normalize": 1}, "normalize and symmetric must be true or false"),
        ({"symmetric": None}, "normalize and symmetric must be true or false"),
        ({"symmetric": False}, "rows and columns do not fit symmetric = False"),
        ({"columns": {}}, "rows and columns do not fit symmetric = True"),
        ({"rows": None}, "rows and columns do not fit"),
        ({"rows": {"deep": {}}}, "rows and columns do not fit"),
    ],
)
def test_headers_that_cannot_be(changes, message):
    with pytest.raises(StoreError, match=message):
        make_header(**changes)
    values = {**vars(make_header()), **changes}
    with pytest.raises(StoreError, match=message):
        KernelHeader.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "[" * 100_000, '{"shape": [7, 7]}', "1"])
def test_headers_that_are_none(text):
    with pytest.raises(StoreError, match="header: "):
        KernelHeader.from_json(text)


def test_headers_come_back():
    for header in (make_header(), make_header(**CROSS)):
        assert KernelHeader.from_json(header.to_json()) == header


# ---- files that cannot be trusted --------------------------------------------------------------


def survives(path):
    """Whether a file can be read; anything but a StoreError is a failure."""
    try:
        kernel = open_kernel(path)
        kernel.check()
        kernel.read(0, 100)
        np.array(kernel.values)
    except StoreError:
        return False
    finally:
        with contextlib.suppress(StoreError):
            tiles_there(path.with_suffix(""))
    return True


def test_truncated_at_any_length(tmp_path, whole):
    content = whole.read_bytes()
    path = tmp_path / "cut.partial"
    for length in [*range(0, 200, 7), *range(200, len(content), 501), len(content) - 1]:
        path.write_bytes(content[:length])
        assert not survives(path)
        with pytest.raises(StoreError):
            KernelWriter.open(path.with_suffix(""), make_header())


def test_truncated_where_hdf5_does_not_notice(whole, monkeypatch):
    """Older releases of HDF5 accept a dataset that reaches past the end of the file."""
    read = kernel_file.read_extent

    def read_too_far(path, file, name, shape, dtype):
        extent = read(path, file, name, shape, dtype)
        return replace(extent, offset=extent.offset + 8) if name == "checksums" else extent

    monkeypatch.setattr(kernel_file, "read_extent", read_too_far)
    with pytest.raises(StoreError, match=r"truncated: [\d,]+ bytes long, its datasets end at"):
        open_kernel(whole)


def test_truncated_after_it_was_opened(whole):
    kernel = open_kernel(whole)
    os.truncate(whole, kernel.extents["ntk"].offset + 20)
    with pytest.raises(StoreError, match="has been truncated since it was opened"):
        kernel.read(0, 7)
    whole.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        kernel.read(0, 7)


@pytest.mark.parametrize("place", [(0, 0), (6, 6), (5, 1), (1, 5)])
def test_a_flipped_bit_is_found(whole, place):
    kernel = open_kernel(whole)
    extent = kernel.extents["ntk"]
    content = bytearray(whole.read_bytes())
    content[extent.offset + (place[0] * 7 + place[1]) * 4 + 1] ^= 4
    whole.write_bytes(content)
    i, j = place[0] // 3, place[1] // 3
    message = f"tile of rows {3 * i} to .* and columns from {3 * j} is damaged"
    with pytest.raises(StoreError, match=message):
        open_kernel(whole).check()


def test_tiles_in_the_wrong_place_are_found(tmp_path):
    path = make(tmp_path / "kernel.h5", tile=1)
    kernel = open_kernel(path)
    content = bytearray(path.read_bytes())
    for extent in kernel.extents.values():
        size = extent.dtype.itemsize
        one, two = (slice(extent.offset + t * size, extent.offset + (t + 1) * size) for t in (1, 9))
        content[one], content[two] = content[two], content[one]
    path.write_bytes(content)
    with pytest.raises(StoreError, match="tile of rows 0 to 0 and columns from 1 is damaged"):
        open_kernel(path).check()


def test_flipped_anywhere(tmp_path, whole):
    """A file with flipped bytes reads as it was, or is refused."""
    content, random = whole.read_bytes(), np.random.default_rng(0)
    extents = open_kernel(whole).extents
    data = [(e.offset, e.offset + e.nbytes) for e in extents.values()]
    used = [i for i in range(len(content)) if content[i] or any(a <= i < b for a, b in data)]
    path = tmp_path / "flipped.partial"
    refused = 0
    for _ in range(400):
        flipped = bytearray(content)
        for place in random.choice(used, size=random.integers(1, 4)):
            flipped[place] ^= int(random.integers(1, 256))
        path.write_bytes(flipped)
        if survives(path):
            assert np.array_equal(open_kernel(path).values, kernel_of(make_header()).numpy())
        else:
            refused += 1
    assert refused > 300


def rewrite(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def set_header(text):
    def change(file):
        file.attrs["header"] = np.bytes_(text)
        file.attrs["header_crc32"] = zlib.crc32(text.encode())

    return change


def replace_dataset(name, **options):
    def change(file):
        values = file[name][:]
        del file[name]
        file.create_dataset(name, **{"data": values, **options})

    return change


def link(name, target):
    def change(file):
        del file[name]
        file[name] = target

    return change


def remove(name):
    def change(file):
        del file[name]

    return change


def header_with(**changes):
    return set_header(json.dumps({**vars(make_header()), **changes}))


HUGE = 10**30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.pop("format"), "not a pntk kernel"),
        (lambda file: file.attrs.modify("format", 3), "not a pntk kernel"),
        (lambda file: file.attrs.modify("format_version", 2), "format version 2, .*; upgrade pntk"),
        (lambda file: file.attrs.pop("header"), "header is damaged"),
        (lambda file: file.attrs.modify("header_crc32", 5), "header is damaged"),
        (lambda file: file.attrs.__setitem__("checksum", np.bytes_("x")), "this pntk knows"),
        (set_header("[" * 50_000), "header: not valid JSON"),
        (set_header("null"), "header: expected the fields"),
        (header_with(tile="3"), "header: tile is '3'"),
        (header_with(shape=[HUGE, HUGE]), "dataset 'ntk' is float32"),
        (header_with(tile=1), "dataset 'done' is uint8"),
        (header_with(tile=2**70), "dataset 'done' is uint8"),
        (header_with(dtype="float64"), "dataset 'ntk' is float32"),
        (remove("ntk"), "has no dataset 'ntk'"),
        (remove("done"), "has no dataset 'done'"),
        (link("checksums", h5py.SoftLink("/done")), "has no dataset 'checksums'"),
        (link("ntk", h5py.ExternalLink("other.h5", "/ntk")), "has no dataset 'ntk'"),
        (replace_dataset("ntk", chunks=(7, 7)), "'ntk' is not contiguous"),
        (replace_dataset("done", dtype="i8"), "dataset 'done' is int64"),
        (replace_dataset("ntk", data=np.zeros((7, 6), "f4")), "dataset 'ntk' is float32"),
        (lambda file: file["done"].__setitem__((1, 2), 0), r"tile \(1, 2\) is missing"),
        (lambda file: file["done"].__setitem__((2, 0), 0xAA), r"tile \(2, 0\) is missing"),
    ],
)
def test_files_that_were_made_to_deceive(tmp_path, whole, change, message):
    rewrite(whole, change)
    with pytest.raises(StoreError, match=message):
        open_kernel(whole)


def test_links_are_not_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path(os.devnull)):
        with pytest.raises(StoreError, match=r"directory|not a regular file"):
            open_kernel(path)
