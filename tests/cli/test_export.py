import json

import h5py
import numpy as np

from pntk.store import FeatureStore


def test_numpy(invoke, stores):
    shown = invoke("export", "train.h5", "--out", "rows.npy").stdout
    assert shown.endswith("rows.npy: 20 rows, 5.2 kB\n")
    assert np.array_equal(np.load("rows.npy"), FeatureStore("train.h5").numpy())


def test_a_part_as_a_store(invoke, stores):
    found = json.loads(
        invoke("export", "train.h5", "--rows", "3,5:8", "--out", "part.h5", "--json").stdout
    )
    assert found["rows"] == 4
    part = FeatureStore("part.h5")
    assert part.column("indices").tolist() == [3, 5, 6, 7]
    assert np.array_equal(part.numpy(), FeatureStore("train.h5").numpy()[[3, 5, 6, 7]])


def test_half_precision(invoke, stores):
    invoke("export", "train.h5", "--out", "half.h5", "--storage", "fp16")
    assert FeatureStore("half.h5").header.dtype == "float16"


def test_refusals(refused, stores):
    assert "expected .h5, .npy" in refused("export", "train.h5", "--out", "rows.txt")
    assert "--rows names '20'" in refused("export", "train.h5", "--rows", "20", "--out", "a.npy")
    assert "expected full or fp16" in refused(
        "export", "train.h5", "--out", "a.h5", "--storage", "fp8"
    )
    assert not (stores / "a.h5").exists()


def test_checked_while_read(refused, invoke, stores):
    with h5py.File("train.h5", "r+") as file:
        file["features"][4, 5] += 1
    invoke("export", "train.h5", "--out", "a.npy")
    assert "row 4 is damaged" in refused("export", "train.h5", "--out", "b.npy", "--check", code=1)
    assert not (stores / "b.npy").exists()
