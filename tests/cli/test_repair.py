import json

import h5py
import numpy as np
import pytest

from pntk.store import FeatureStore

WORK = ["featurize", "--model", "toy:net", "--data", "toy:digits", "--proj-dim", 64]
WORK += ["--out", "train.h5", "--no-progress"]


def damage():
    with h5py.File("train.h5", "r+") as file:
        file["features"][4, 5] += 1
        file["labels"][11] += 1
        file["done"][17] ^= 8


@pytest.fixture
def damaged(stores):
    damage()
    return stores / "train.h5"


def test_exactly_the_damaged_rows_are_marked_and_made_again(invoke, damaged):
    before = FeatureStore("train.h5").numpy().copy()
    shown = invoke("repair", "train.h5", "--no-progress")
    assert "row 4: checksum is " in shown.stderr and "row 17: done is " in shown.stderr
    assert shown.stdout.startswith("marked 3 damaged rows as missing; featurize with the same")
    store = FeatureStore("train.h5")
    assert np.flatnonzero(store.done == 0).tolist() == [4, 11, 17]
    assert store.verify().ok
    assert "computed 3 rows" in invoke(*WORK).stdout
    assert store.complete and store.verify().ok
    unharmed = np.setdiff1d(np.arange(20), [4, 11, 17])
    assert np.array_equal(store.numpy()[unharmed], before[unharmed])
    assert invoke("repair", "train.h5").stdout == (
        "nothing to repair: 20 rows are as they were written\n"
    )


def test_dry_run_changes_nothing(invoke, damaged):
    before = damaged.read_bytes()
    assert (
        "3 rows are damaged; without --dry-run" in invoke("repair", "train.h5", "--dry-run").stdout
    )
    found = json.loads(invoke("repair", "train.h5", "--dry-run", "--json").stdout)
    assert found["bad_rows"] == [4, 11, 17] and found["marked"] is False
    assert damaged.read_bytes() == before


def test_json(invoke, damaged):
    found = json.loads(invoke("repair", "train.h5", "--json", "--no-progress").stdout)
    assert found == {"path": str(damaged), "bad_rows": [4, 11, 17], "marked": True}


def test_shards_are_repaired(invoke, stores):
    invoke("join", "all.h5", "test.h5", "train.h5")
    damage()
    assert "row 13 (in train.h5): checksum" in invoke("repair", "all.h5", "--no-progress").stderr
    assert np.flatnonzero(FeatureStore("train.h5").done == 0).tolist() == [4, 11, 17]


def test_no_store(refused, toy):
    (toy / "bad.h5").write_text("no store")
    assert "is not an HDF5 file" in refused("repair", "bad.h5", code=1)
