import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pntk import FeatureStore, Featurizer, ntk
from pntk.errors import ConfigError, OutOfMemoryError, StoreError
from pntk.ntk import kernel_file, projected
from pntk.ntk.kernel_file import open_kernel, partial_path, tiles_there
from pntk.ntk.projected import Need, choose_tile
from pntk.rows import as_rows, identify
from pntk.store import RowWriter, StoreHeader

TILES = [1, 7, 16, 63, 64, 1000]
SPEC = {"family": "hadamard", "proj_dim": 5, "seed": 0, "more": [1]}


def rows(n, k=9, dtype=torch.float64, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiled(tile, *args, **options):
    """The kernel in tiles of so many rows, which a budget would give for rows that are wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projected, "choose_tile", lambda need, budget: tile)
        return ntk(*args, **options)


def read(path):
    with h5py.File(path) as file:
        return file["ntk"][:]


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 63, 64, 65])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("normalize", [False, True])
def test_symmetric_kernel(n, tile, normalize):
    a = rows(n)
    found = tiled(tile, a, normalize=normalize)
    unit = a / a.norm(dim=1, keepdim=True) if normalize else a
    torch.testing.assert_close(found, unit @ unit.T, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.T)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-10


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("normalize", [False, True])
def test_rectangular_kernel(tile, normalize):
    a, b = rows(33), rows(65, seed=1)
    x, y = (r / r.norm(dim=1, keepdim=True) if normalize else r for r in (a, b))
    for left, right, expected in ((a, b, x @ y.T), (b, a, y @ x.T), (a[:1], b, x[:1] @ y.T)):
        found = tiled(tile, left, right, normalize=normalize)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(n=st.integers(1, 20), m=st.integers(1, 20), tile=st.integers(1, 25))
def test_any_tile_gives_the_same_integers(n, m, tile):
    a, b = (rows(n, seed=n) * 4).round(), (rows(m, seed=m + 50) * 4).round()
    assert torch.equal(tiled(tile, a, b), a @ b.T)
    assert torch.equal(tiled(tile, a), a @ a.T)


@pytest.mark.parametrize("tile", [48, 130])
def test_float32_is_symmetric_to_the_bit(tile):
    a = rows(130, 257, torch.float32)
    found = tiled(tile, a, normalize=True)
    assert found.dtype == torch.float32 and torch.equal(found, found.T)


def test_products_in_pieces(monkeypatch):
    monkeypatch.setattr(projected, "_PIECE", 10)
    monkeypatch.setattr(projected, "_SQUARE", 7)
    a, b = (rows(45) * 4).round(), (rows(33, seed=1) * 4).round()
    assert torch.equal(ntk(a), a @ a.T)
    assert torch.equal(tiled(25, a), a @ a.T)
    assert torch.equal(ntk(a, b), a @ b.T)
    block = torch.full((45, 45), float("nan"), dtype=a.dtype)
    projected._multiply(a, a, block, True)  # pieces below the diagonal are left out
    assert block[20:30, :20].isnan().all() and not block[20:30, 20:].isnan().any()


def test_rows_that_are_read_in_strips(monkeypatch):
    monkeypatch.setattr(projected, "_STRIP", 200)
    a, b = rows(45).float(), rows(33, seed=1)
    expected = a.double() @ b.T / a.double().norm(dim=1)[:, None] / b.norm(dim=1)
    torch.testing.assert_close(tiled(20, a, b, normalize=True), expected, rtol=1e-6, atol=1e-6)


def test_rows_in_any_order_of_memory():
    a, b = rows(20, 33).T, rows(66, 20)[::2, ::2]
    torch.testing.assert_close(tiled(7, a[:, :10], b), a[:, :10] @ b.T)
    torch.testing.assert_close(tiled(7, b), b @ b.T)


def test_types_are_promoted():
    assert ntk(rows(3).float(), rows(4)).dtype == torch.float64
    assert ntk(rows(3).half(), rows(4).bfloat16()).dtype == torch.float32
    assert ntk(rows(3).numpy(), rows(4).float().numpy()).dtype == torch.float64


def test_rows_that_need_a_gradient():
    a = rows(3).requires_grad_()
    assert not ntk(a).requires_grad
    assert not ntk(a, a, normalize=True).requires_grad


def test_rows_of_zeros_have_cosine_zero():
    a = torch.cat([torch.zeros(1, 9, dtype=torch.float64), rows(3)])
    for found in (tiled(2, a, normalize=True), tiled(2, a, a, normalize=True)):
        assert found.isfinite().all()
        assert not found[0].any() and not found[:, 0].any()
        torch.testing.assert_close(found.diag()[1:], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_cosines_of_rows_whose_products_float32_cannot_hold(size):
    a = rows(5)
    expected = ntk(a, normalize=True).float()
    found = ntk((a * size).float(), normalize=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ---- the budget --------------------------------------------------------------------------------


class OnDisk:
    """What Need asks of rows, without the rows."""

    copied = True

    def __init__(self, n, k):
        self.shape = n, k


@given(
    n=st.integers(1, 10**6),
    m=st.none() | st.integers(1, 10**6),
    k=st.integers(1, 10**6),
    spare=st.integers(0, 2**34),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    normalize=st.booleans(),
)
def test_tiles_keep_within_the_budget(n, m, k, spare, dtype, normalize):
    right = None if m is None else OnDisk(m, k)
    need = Need(OnDisk(n, k), right, dtype, torch.device("cpu"), normalize)
    most = max(need.shape)

    def count(tile):
        return -(-most // tile)

    least = min(need.bytes(min(8, most)), need.bytes(most))
    tile = choose_tile(need, least + spare)
    assert need.bytes(tile) <= least + spare
    assert tile == most or tile % 64 == 0 or tile < 64
    if tile < most:  # as few tiles as fit, and those of equal size
        larger = tile + (64 if tile % 64 == 0 else 1)
        assert count(larger) == count(tile) or need.bytes(larger) > least + spare
        assert tile <= 64 or count(tile - 64) > count(tile)
    with pytest.raises(ConfigError, match=f"use memory_budget={least}$"):
        choose_tile(need, least - 1)


@pytest.mark.parametrize(
    ("m", "tile", "normalize", "entries"),
    [
        (None, 20, False, 2 * 20 * 10 + 20 * 20),
        (None, 100, False, 100 * 10 + 100 * 100),  # one block, and it is both
        (30, 20, False, (20 + 20) * 10 + 20 * 20),
        (30, 50, True, (50 + 30) * 10 + 50 * 30 + 100 + 30),
    ],
)
def test_what_a_tile_takes(monkeypatch, m, tile, normalize, entries):
    monkeypatch.setattr(projected, "_workspace", lambda size: 7)
    monkeypatch.setattr(projected, "_STRIP", 1000)
    right = None if m is None else OnDisk(m, 10)
    need = Need(OnDisk(100, 10), right, torch.float32, torch.device("cpu"), normalize)
    assert need.bytes(tile) == 4 * entries + 3 * 1000 + 7


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (1000, "memory_budget is 1,000 bytes; rows of 9 numbers need at least [0-9,]+: use mem"),
        ("12 MX", "memory_budget is '12 MX'; expected bytes"),
        (None, "memory_budget is None; expected bytes, or a text such as '1GB'"),
    ],
)
def test_budgets_that_cannot_be_kept(budget, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ntk(rows(3), memory_budget=budget, out=tmp_path / "kernel.h5")
    assert not list(tmp_path.iterdir())


def test_rows_are_used_where_they_are(monkeypatch):
    def viewed(a, dtype=torch.float64, device="cpu", normalize=False):
        a = as_rows(a)
        return Need(a, None, dtype, torch.device(device), normalize).viewed(a)

    a = rows(4, 9)
    assert viewed(a) and viewed(a.numpy())
    assert not viewed(a, normalize=True) and not viewed(a, device="cuda")
    assert not viewed(a, torch.float32) and not viewed(a.half(), torch.float32)
    assert not viewed(a.T) and not viewed(a[:, :5])
    wide = rows(30, 100_000)  # 24 MB
    monkeypatch.setattr(projected, "_workspace", lambda size: 0)
    torch.testing.assert_close(ntk(wide, memory_budget="4MB"), wide @ wide.T)


def test_a_kernel_that_does_not_fit_into_memory(monkeypatch):
    monkeypatch.setattr(projected, "available_memory", lambda: 100)
    message = "a kernel of 4 x 5 takes 160 bytes and 100 are available in memory; write it to a .*="
    with pytest.raises(OutOfMemoryError, match=message):
        ntk(rows(4), rows(5))
    monkeypatch.setattr(projected, "available_memory", lambda: None)
    ntk(rows(4), rows(5))


@pytest.mark.parametrize(("symmetric", "count", "loads"), [(True, 15, 11), (False, 15, 16)])
def test_blocks_are_read_seldom(monkeypatch, symmetric, count, loads):
    blocks, loaded = [], []
    multiply, load = projected._multiply, projected._Blocks._load

    def counted(x, y, block, upper):
        blocks.append(tuple(block.shape))
        multiply(x, y, block, upper)

    monkeypatch.setattr(projected, "_multiply", counted)
    monkeypatch.setattr(
        projected._Blocks, "_load", lambda self, *key: loaded.append(key) or load(self, *key)
    )
    tiled(8, rows(33), None if symmetric else rows(20, seed=1), normalize=True)
    assert len(blocks) == count  # 5 x 3, or the upper triangle of 5 x 5
    assert max(map(max, blocks)) <= 8
    assert len(loaded) == loads


PEAK = """
import sys
from pntk import FeatureStore, ntk

def peak():  # and not ru_maxrss, which begins with that of the process that started this one
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

before = peak()
ntk(FeatureStore(sys.argv[1]), out=sys.argv[2], memory_budget="48MB", normalize=True)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
def test_memory_stays_within_the_budget(tmp_path, store_of):
    n, k = 6144, 2048  # rows of 50 MB, a kernel of 151 MB
    generator = np.random.default_rng(0)
    path = store_of("a.h5", lambda m: generator.standard_normal((m, k), dtype=np.float32), n, k)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, path, tmp_path / "kernel.h5"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 48e6
    kernel = open_kernel(tmp_path / "kernel.h5")
    assert kernel.header.tile < n / 3
    a = FeatureStore(path).read(0, 5)
    torch.testing.assert_close(
        torch.from_numpy(kernel.read(0, 5)[:, :5]), ntk(a, normalize=True), rtol=1e-5, atol=1e-6
    )


# ---- on disk -----------------------------------------------------------------------------------


@pytest.fixture
def store_of(tmp_path):
    """Write a store with rows that a function makes, a thousand at a time."""

    def write(name, make, n, k, **changes):
        values = {
            "rows": n,
            "width": k,
            "dtype": "float32",
            "projection": SPEC,
            "output": {"name": "pntk"},
            "params": (("weight", (3, 5)),),
            "weights": "ab12",
            "precision": "fp32",
        }
        header = StoreHeader(**{**values, **changes})
        with RowWriter.open(tmp_path / name, header) as writer:
            for start in range(0, n, 1000):
                stop = min(start + 1000, n)
                writer.write(np.arange(start, stop), make(stop - start))
        return tmp_path / name

    return write


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tile", [1, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_on_disk(tmp_path, symmetric, tile, dtype):
    a, b = rows(33, dtype=dtype), None if symmetric else rows(20, seed=1, dtype=dtype)
    path = tiled(tile, a, b, out=tmp_path / "kernel.h5", normalize=True)
    assert path == tmp_path / "kernel.h5" and list(tmp_path.iterdir()) == [path]
    found, expected = read(path), tiled(tile, a, b, normalize=True).numpy()
    assert found.dtype == expected.dtype and np.array_equal(found, expected)
    open_kernel(path).check()


def test_kernels_on_disk_are_never_overwritten(tmp_path, monkeypatch):
    path = tmp_path / "kernel.h5"
    path.write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(projected, "identify", None)  # refused before any work
        with pytest.raises(StoreError, match=r"kernel.h5 exists; give another path for the kernel"):
            ntk(rows(3), out=path)
    assert path.read_text() == "mine"
    with pytest.raises(StoreError, match="missing does not exist; create it first"):
        ntk(rows(3), out=tmp_path / "missing" / "kernel.h5")


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(ntk(rows(3), out="kernel.h5")) == "kernel.h5"
    assert (tmp_path / "kernel.h5").exists()


def test_progress(tmp_path, capsys, stop_at):
    stop_at(4)
    for first, last in (("0/6", "3/6"), ("3/6", "6/6")):
        with contextlib.suppress(Stopped):
            tiled(2, rows(6), out=tmp_path / "kernel.h5", progress=True)
        shown = capsys.readouterr().err
        assert shown.startswith("\rntk: ") and first in shown.split("\r")[1]
        assert last in shown
    ntk(rows(6))
    assert not capsys.readouterr().err


class Stopped(Exception):
    pass


@pytest.fixture
def stop_at(monkeypatch):
    """Let the computation stop at its i-th tile, once, by an exception."""

    def arm(i, error=Stopped):
        calls, original = [], kernel_file.KernelWriter.write

        def write(self, *args):
            calls.append(args)
            if len(calls) == i:
                raise error
            original(self, *args)

        monkeypatch.setattr(kernel_file.KernelWriter, "write", write)
        return calls

    return arm


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("normalize", [False, True])
def test_resuming_after_a_stop_at_every_tile(tmp_path, stop_at, symmetric, normalize):
    a, b = rows(23, 30).float(), None if symmetric else rows(14, 30, seed=1).float()
    out = tmp_path / "kernel.h5"

    def make(path):
        return tiled(5, a, b, out=path, normalize=normalize)

    expected = read(make(tmp_path / "whole.h5"))
    for i in range(1, 16):
        calls = stop_at(i, KeyboardInterrupt if i == 4 else Stopped)
        with pytest.raises((Stopped, KeyboardInterrupt)):
            make(out)
        assert not out.exists()
        assert tiles_there(out) == (i - 1, 15)
        with pytest.raises(StoreError, match=r"kernel.h5.partial: tile \(\d, \d\) is missing"):
            open_kernel(partial_path(out))
        before = len(calls)
        make(out)
        assert len(calls) - before == 15 - (i - 1)
        assert np.array_equal(read(out).view(np.int32), expected.view(np.int32))
        assert sorted(file.name for file in tmp_path.iterdir()) == ["kernel.h5", "whole.h5"]
        open_kernel(out).check()
        out.unlink()


def test_every_tile_alone_is_enough(tmp_path, stop_at):
    """Stopped again and again, each call adds one tile."""
    out = tmp_path / "kernel.h5"
    for i in range(6):
        stop_at(2)
        if i < 5:
            with pytest.raises(Stopped):
                tiled(4, rows(12), out=out)
            assert tiles_there(out) == (i + 1, 6)
    tiled(4, rows(12), out=out)
    assert np.array_equal(read(out), tiled(4, rows(12)).numpy())


def test_a_whole_kernel_without_its_name_gets_it(tmp_path, monkeypatch):
    out = tmp_path / "kernel.h5"
    tiled(4, rows(12), out=out, normalize=True)
    os.replace(out, partial_path(out))
    monkeypatch.setattr(projected, "_Blocks", None)  # nothing is read again
    tiled(4, rows(12), out=out, normalize=True)
    open_kernel(out).check()


KILLED = """
import os, signal, sys
import torch
from pntk.ntk import kernel_file, projected

kernel_file.SYNC_INTERVAL = 0.0
projected.choose_tile = lambda need, budget: 8
calls, original = [], kernel_file._write_at

def write_at(file, offset, values):
    calls.append(offset)
    if len(calls) == int(sys.argv[2]):  # in the middle of a line of a tile
        original(file, offset, values[: len(values) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    original(file, offset, values)

kernel_file._write_at = write_at
rows = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
projected.ntk(rows, out=sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal")
def test_a_kill_in_the_middle_of_a_write(tmp_path):
    out = tmp_path / "kernel.h5"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, out, "100"], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    there, total = tiles_there(out)
    assert 1 < there < total == 15
    a = rows(40, 16, torch.float32)
    tiled(8, a, out=out)
    assert np.array_equal(read(out), tiled(8, a).numpy())
    assert [file.name for file in tmp_path.iterdir()] == ["kernel.h5"]  # no lease of the dead
    open_kernel(out).check()


def test_the_budget_of_a_resumed_kernel(tmp_path, stop_at, monkeypatch):
    monkeypatch.setattr(projected, "_workspace", lambda size: 0)
    out = tmp_path / "kernel.h5"
    stop_at(3)
    a = rows(1000, 50)
    with pytest.raises(Stopped):
        ntk(a, out=out, memory_budget="5MB")
    with kernel_file.KernelWriter.open(out, kernel_file._read_layout(partial_path(out))[0]) as file:
        tile = file.header.tile
    assert tile % 64 == 0 and tile < 1000
    need = Need(as_rows(a), None, a.dtype, torch.device("cpu"), False).bytes(tile)
    with pytest.raises(
        ConfigError, match=rf"with tiles of {tile} rows, which .* memory_budget={need},"
    ):
        ntk(a, out=out, memory_budget=need - 1)
    ntk(a, out=out, memory_budget="1GB")
    assert open_kernel(out).header.tile == tile
    torch.testing.assert_close(torch.from_numpy(read(out)), a @ a.T)


def begin(tmp_path, a, b=None, **options):
    """Begin a kernel and stop at its second tile."""
    out = tmp_path / "kernel.h5"
    partial_path(out).unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        original = kernel_file.KernelWriter.write

        def write(self, i, j, tile):
            if j == 1:
                raise Stopped
            original(self, i, j, tile)

        patch.setattr(kernel_file.KernelWriter, "write", write)
        with pytest.raises(Stopped):
            tiled(4, a, b, out=out, **options)
    return out


OTHER = "kernel.h5.partial: is the beginning of another kernel: {}.*; go on with the arguments that"


@pytest.mark.parametrize(
    ("a", "b", "options", "field"),
    [
        (rows(12)[:11], None, {}, r"shape is \(12, 12\) there and \(11, 11\) now"),
        (rows(12).float(), None, {}, "dtype is 'float64' there and 'float32' now"),
        (rows(12), None, {"normalize": True}, "normalize is False there and True now"),
        (rows(12), rows(12), {}, "symmetric is True there and False now"),
        (rows(12, 8), None, {}, "rows.width is 9 there and 8 now"),
        (
            rows(12, seed=1),
            None,
            {},
            r"rows.content is '[0-9a-f]{16}' there and '[0-9a-f]{16}' now",
        ),
    ],
)
def test_another_kernel_is_refused(tmp_path, a, b, options, field):
    out = begin(tmp_path, rows(12))
    content = partial_path(out).read_bytes()
    with pytest.raises(StoreError, match=OTHER.format(field)):
        tiled(4, a, b, out=out, **options)
    assert partial_path(out).read_bytes() == content
    partial_path(out).unlink()  # the remedy
    tiled(4, a, b, out=out, **options)


def test_other_columns_are_refused(tmp_path):
    out = begin(tmp_path, rows(12), rows(9, seed=1))
    with pytest.raises(StoreError, match=OTHER.format("columns.content")):
        tiled(4, rows(12), rows(9, seed=2), out=out)
    with pytest.raises(StoreError, match=OTHER.format("columns.dtype is 'float64' there")):
        tiled(4, rows(12), rows(9, seed=1).float(), out=out)
    tiled(4, rows(12), rows(9, seed=1), out=out)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"projection": SPEC | {"seed": 1}}, "rows.projection.seed is 0 there and 1 now"),
        ({"projection": SPEC | {"more": [2]}}, r"rows.projection.more is '\[1\]' there"),
        ({"projection": {"family": "hadamard"}}, "rows.projection.more is .* there and None now"),
        ({"output": {"name": "trace"}}, "rows.output.name is 'pntk' there and 'trace' now"),
        ({"params": (("weight", (3, 6)),)}, "rows.params"),
        ({"weights": "cd"}, "rows.weights is 'ab12' there and 'cd' now"),
        ({"info": {"pntk": "9"}}, "rows.header_crc32"),
    ],
)
def test_another_store_is_refused(tmp_path, store_of, changes, field):
    out = begin(tmp_path, FeatureStore(store_of("a.h5", lambda m: rows(m, 5).float(), 12, 5)))
    other = FeatureStore(store_of("b.h5", lambda m: rows(m, 5).float(), 12, 5, **changes))
    with pytest.raises(StoreError, match=OTHER.format(field)):
        tiled(4, other, out=out)


def test_a_store_whose_rows_have_changed_is_refused(tmp_path, store_of):
    path = store_of("a.h5", lambda m: rows(m, 5).float(), 12, 5)
    out = begin(tmp_path, FeatureStore(path))
    tiled_out = tiled(4, FeatureStore(path), out=tmp_path / "same.h5")
    with RowWriter.reopen(path) as writer:
        writer.write([7], torch.ones(1, 5))
    with pytest.raises(StoreError, match=OTHER.format("rows.content")):
        tiled(4, FeatureStore(path), out=out)
    assert open_kernel(tiled_out).header.rows["weights"] == "ab12"


def test_identities_do_not_depend_on_how_rows_are_read(monkeypatch, store_of):
    store = FeatureStore(store_of("a.h5", lambda m: rows(m, 5).float(), 12, 5))
    a = rows(12)
    known = [identify(as_rows(source)) for source in (a, store)]
    monkeypatch.setattr("pntk.rows._STRIP", 100)
    assert [identify(as_rows(source)) for source in (a.numpy(), store)] == known
    assert replace(as_rows(a)).shape == (12, 9)


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((rows(3), rows(3, 8)), "rows are 9 and 8 wide"),
        ((rows(3)[0],), r"rows is torch.float64 of shape \(9,\)"),
        (("rows.h5",), "rows is a str; expected a tensor or array"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ntk(*arguments)


class TestStores:
    X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))

    def store(self, path, seed=0, output="pntk", model_seed=0):
        torch.manual_seed(model_seed)
        model = nn.Linear(5, 3)
        featurizer = Featurizer(model, output, proj_dim=64, seed=seed)
        return featurizer.featurize(self.X, path, progress=False)

    def test_stores_are_rows(self, tmp_path):
        a, b = self.store(tmp_path / "a.h5"), self.store(tmp_path / "b.h5")
        expected = a.torch() @ a.torch().T
        torch.testing.assert_close(ntk(a), expected)
        torch.testing.assert_close(tiled(3, a, b), expected)
        torch.testing.assert_close(tiled(3, a, b.torch()), expected)
        out = tiled(3, a, b, out=tmp_path / "kernel.h5")
        torch.testing.assert_close(torch.from_numpy(read(out)), expected)

    def test_rows_are_compared_with_their_checksums(self, tmp_path):
        store = self.store(tmp_path / "a.h5")
        with h5py.File(store.path, "r+") as file:
            file["features"][3, 1] += 1
        ntk(FeatureStore(store.path))
        with pytest.raises(StoreError, match="row 3 is damaged"):
            ntk(FeatureStore(store.path, check=True))

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"seed": 1}, "projection"),
            ({"output": "trace"}, "output"),
            ({"model_seed": 1}, "weights"),
        ],
    )
    def test_stores_that_do_not_match_are_refused(self, tmp_path, change, field):
        a, b = self.store(tmp_path / "a.h5"), self.store(tmp_path / "b.h5", **change)
        with pytest.raises(ConfigError, match=f"a.h5 and .*b.h5 differ in {field}"):
            ntk(a, b)


@pytest.mark.parametrize(
    ("impl", "message"),
    [
        ("cublas", "impl is 'cublas'; expected 'torch' or 'triton'"),
        ("triton", r"impl='triton' cannot be used: .*the model is on cpu.*; use impl='torch'"),
    ],
)
def test_an_implementation_that_cannot_be_used(impl, message):
    with pytest.raises(ConfigError, match=message):
        ntk(torch.ones(2, 3), impl=impl)


@pytest.mark.gpu
@pytest.mark.parametrize("normalize", [False, True])
def test_the_gpu_gives_the_same_kernel(tmp_path, normalize):
    a, b = rows(65), rows(20, seed=1)
    for other in (None, b):
        expected = ntk(a, other, normalize=normalize)
        found = tiled(16, a, other, device="cuda", normalize=normalize)
        torch.testing.assert_close(found, expected)
        out = tmp_path / f"{other is None}.h5"
        tiled(16, a.cuda(), other, device="cuda", normalize=normalize, out=out)
        torch.testing.assert_close(torch.from_numpy(read(out)), expected)
