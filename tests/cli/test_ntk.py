import json

import h5py
import numpy as np
import pytest

from pntk.cli.ntk import summarize
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
    shown = invoke("ntk", "test.h5", "train.h5", "--normalize").stdout
    assert "9 x 20" in shown
    assert "trace" not in shown
    assert not list(stores.glob("k*.h5"))


def test_readable_output_says_where(invoke, stores):
    shown = invoke("ntk", "train.h5", "--out", "k.h5").stdout
    assert "k.h5" in shown
    assert "diagonal mean" in shown


def test_summary_of_blocks_is_that_of_the_whole():
    kernel = np.random.default_rng(0).normal(size=(2100, 2100))
    found = summarize(kernel, symmetric=True)
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
