import json

import h5py
import numpy as np
import pytest

from pntk.cli.ntk import summarize
from pntk.ntk import projected
from pntk.ntk.kernel_file import KernelWriter, open_kernel
from pntk.ntk.projected import ntk
from pntk.store import FeatureStore


def test_kernel_is_written_and_summarized(invoke, stores):
    found = json.loads(invoke("ntk", "train.h5", "--out", "k.h5", "--json").stdout)
    rows = FeatureStore("train.h5").numpy()
    with h5py.File("k.h5") as file:
        kernel = file["ntk"][:]
    np.testing.assert_allclose(kernel, rows @ rows.T, rtol=1e-5, atol=1e-5)
    assert found["shape"] == [20, 20]
    assert found["trace"] == pytest.approx(np.trace(kernel))
    assert found["diagonal_mean"] == pytest.approx(np.trace(kernel) / 20)
    assert (found["min"], found["max"]) == pytest.approx((kernel.min(), kernel.max()))
    assert found["bytes"] == (stores / "k.h5").stat().st_size


def test_without_out_only_a_summary(invoke, stores):
    result = invoke("ntk", "test.h5", "train.h5", "--normalize")
    assert "1/1" in result.stderr
    assert not invoke("ntk", "test.h5", "train.h5", "--no-progress").stderr
    shown = result.stdout
    assert "9 x 20" in shown
    assert "trace" not in shown
    assert not list(stores.glob("k*.h5"))


def test_readable_output_says_where(invoke, stores):
    shown = invoke("ntk", "train.h5", "--out", "k.h5").stdout
    assert "k.h5" in shown
    assert "diagonal mean" in shown


@pytest.mark.parametrize("size", [1, 30_000, 10**9])
def test_summary_of_blocks_is_that_of_the_whole(monkeypatch, size):
    monkeypatch.setattr("pntk.cli.ntk.BLOCK_BYTES", size)
    kernel = np.random.default_rng(0).normal(size=(210, 210))
    found = summarize(kernel.shape, lambda i, j: kernel[i:j], symmetric=True)
    assert found["shape"] == [210, 210]
    assert found["max"] == kernel.max()
    assert found["trace"] == pytest.approx(np.trace(kernel))
    assert found["mean"] == pytest.approx(kernel.mean())
    assert found["min"] == kernel.min()


def test_errors(refused, invoke, stores, monkeypatch):
    (stores / "k.h5").write_text("mine")
    assert "--out k.h5 exists" in refused("ntk", "train.h5", "--out", "k.h5")
    assert (stores / "k.h5").read_text() == "mine"
    monkeypatch.setattr("pntk.cli.ntk.LARGEST_IN_MEMORY", 100)
    assert "too large to only summarize" in refused("ntk", "train.h5")
    assert "does not exist" in invoke("ntk", "absent.h5", code=2).stderr


def test_stores_of_other_maps(refused, invoke, stores):
    work = ["featurize", "--model", "toy:net", "--data", "toy:digits", "--proj-dim", 64]
    invoke(*work, "--seed", 1, "--out", "other.h5")
    assert "differ in projection" in refused("ntk", "train.h5", "other.h5")


def test_budget_and_check(refused, invoke, stores):
    small = refused("ntk", "train.h5", "--out", "k.h5", "--memory-budget", "1MB")
    assert "memory_budget is 1,000,000 bytes; rows of 64 numbers need at least" in small
    assert not list(stores.glob("k.h5*"))
    with h5py.File("train.h5", "r+") as file:
        file["features"][3, 1] += 1
    invoke("ntk", "train.h5", "--out", "k.h5", "--memory-budget", "100MB")
    damaged = refused("ntk", "train.h5", "--check", "--out", "checked.h5", "--no-progress", code=1)
    assert "row 3 is damaged" in damaged
    assert "row 3 is damaged" in invoke("ntk", "test.h5", "train.h5", "--check", code=1).stderr


@pytest.fixture
def stopping(monkeypatch):
    """Make commands that are stopped at their fourth tile, of eight rows, until undone."""
    monkeypatch.setattr(projected, "choose_tile", lambda need, budget: 8)
    original = KernelWriter.write

    def write(self, i, j, tile):
        if (i, j) == (1, 2):
            raise KeyboardInterrupt
        original(self, i, j, tile)

    with monkeypatch.context() as patch:
        patch.setattr(KernelWriter, "write", write)
        yield patch


def test_a_stopped_kernel_goes_on(invoke, stores, stopping):
    arguments = ("ntk", "train.h5", "--out", "k.h5")
    shown = invoke(*arguments, code=130).stderr
    assert "stopped: 3 of 6 tiles are in k.h5.partial; go on from there with: " in shown
    stopping.undo()
    result = invoke(*arguments, "--json")
    assert "resuming: 3 of 6 tiles are in k.h5.partial" in result.stderr
    assert json.loads(result.stdout)["shape"] == [20, 20]
    assert sorted(file.name for file in stores.glob("k.h5*")) == ["k.h5"]
    open_kernel("k.h5").check()


def test_another_kernel_is_refused(refused, invoke, stores, stopping):
    invoke("ntk", "train.h5", "--out", "k.h5", code=130)
    stopping.undo()
    shown = invoke("ntk", "train.h5", "--normalize", "--out", "k.h5", code=1).stderr
    assert "is the beginning of another kernel: normalize is False there and True now" in shown
    (stores / "k.h5.partial").write_text("mine")
    assert "k.h5.partial: is not an HDF5 file" in refused(
        "ntk", "train.h5", "--out", "k.h5", code=1
    )


def test_stopped_before_the_first_tile(invoke, stores, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pntk.cli.ntk.ntk", stop)
    shown = invoke("ntk", "train.h5", "--out", "k.h5", code=130).stderr
    assert "stopped: no tile was written; start again with: " in shown
    assert "stopped" not in invoke("ntk", "train.h5", code=130).stderr


def test_stopped_after_the_last_tile(invoke, stores, monkeypatch):
    def finish(*arguments, **options):
        ntk(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("pntk.cli.ntk.ntk", finish)
    shown = invoke("ntk", "train.h5", "--out", "k.h5", code=130).stderr
    assert "stopped: the kernel is whole, in k.h5" in shown
