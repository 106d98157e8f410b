import json

import numpy as np
import pytest

from pntk.ntk.alignment import centered_alignment, target_alignment
from pntk.store import FeatureStore


@pytest.fixture
def kernel(stores, invoke):
    """kernel.h5 of train.h5; the values of both."""
    invoke("ntk", "train.h5", "--out", "kernel.h5", "--no-progress")
    rows = FeatureStore("train.h5").numpy().astype(np.float64)
    return rows @ rows.T


@pytest.mark.parametrize("name", ["train.h5", "kernel.h5"])
def test_store_and_kernel_say_the_same(invoke, kernel, name):
    (found,) = json.loads(invoke("spectrum", name, "--json").stdout)["files"]
    expected = np.linalg.eigvalsh(kernel)[::-1]
    assert found["kind"] == name[:-3].replace("train", "store")
    np.testing.assert_allclose(found["values"], expected, rtol=1e-4, atol=1e-4)
    assert found["trace"] == pytest.approx(np.trace(kernel), rel=1e-6)
    assert found["largest"] == pytest.approx(expected[0], rel=1e-6)
    assert found["samples"] == 20
    assert "target_alignment" not in found


def test_readable(invoke, kernel):
    shown = invoke("spectrum", "kernel.h5").stdout
    for name in ("kernel", "samples", "trace", "condition number", "effective rank"):
        assert name in shown
    assert "centred" not in shown
    some = invoke("spectrum", "train.h5", "--num", 3).stdout
    assert "the largest 3" in some and "condition" not in some


def test_labels_of_the_store_serve_its_kernel(invoke, kernel):
    found = json.loads(invoke("spectrum", "kernel.h5", "train.h5", "--labels", "--json").stdout)
    labels = np.array(FeatureStore("train.h5").labels)
    for result in found["files"]:
        for name, centered in (("target_alignment", False), ("target_alignment_centered", True)):
            expected = target_alignment(kernel, labels, centered=centered)
            assert result[name] == pytest.approx(expected, rel=1e-5)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == ("kernel.h5", "train.h5")
    assert pair["centered_alignment"] == pytest.approx(1)
    shown = invoke("spectrum", "kernel.h5", "train.h5", "--labels").stdout
    assert "with labels" in shown and "centred alignment" in shown


def test_only_kernels_of_as_many_samples_are_compared(invoke, stores):
    work = ["featurize", "--model", "toy:net", "--data", "toy:digits", "--proj-dim", 64]
    invoke(*work, "--seed", 1, "--out", "other.h5", "--no-progress")
    found = json.loads(invoke("spectrum", "train.h5", "test.h5", "other.h5", "--json").stdout)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == ("train.h5", "other.h5")
    expected = centered_alignment(FeatureStore("train.h5"), FeatureStore("other.h5"))
    assert pair["centered_alignment"] == pytest.approx(expected)


def test_plot(invoke, refused, kernel, stores):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert "plot: s.png" in invoke("spectrum", "kernel.h5", "kernel.h5", "--plot", "s.png").stdout
    assert (stores / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "train.h5 is an HDF5 file" in refused("spectrum", "kernel.h5", "--plot", "train.h5")


def test_skipped_rows_are_mentioned(invoke, toy):
    work = ["featurize", "--model", "toy:net", "--data", "toy:with_nan", "--proj-dim", 64]
    invoke(*work, "--on-nonfinite", "skip", "--out", "some.h5", "--no-progress")
    assert "some.h5: 2 rows were skipped and count as zeros" in invoke("spectrum", "some.h5").stderr


def test_errors(refused, invoke, kernel, stores):
    shown = refused("spectrum", "kernel.h5", "--labels")
    assert "--labels: none of kernel.h5 is a store with labels; give the store" in shown
    shown = refused("spectrum", "train.h5", "test.h5", "--labels")
    assert "train.h5 has 20 rows and test.h5 is of 9 samples" in shown
    assert "num is 99; expected 1 to 20" in refused("spectrum", "kernel.h5", "--num", 99)
    invoke("ntk", "test.h5", "train.h5", "--out", "cross.h5", "--no-progress")
    assert "between two sets of rows" in refused("spectrum", "cross.h5")
    (stores / "text.h5").write_text("mine")
    assert "is not an HDF5 file" in refused("spectrum", "text.h5", code=1)
    assert "does not exist" in invoke("spectrum", "absent.h5", code=2).stderr


def test_rows_without_a_label_are_refused(refused, stores, monkeypatch):
    labels = np.array([0, -1, *range(18)])
    monkeypatch.setattr(FeatureStore, "labels", property(lambda store: labels))
    shown = refused("spectrum", "train.h5", "--labels")
    assert "--labels: 1 of 20 rows of train.h5 have none; leave those rows out" in shown
