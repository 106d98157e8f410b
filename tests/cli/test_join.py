import json

import torch

from pntk.store import FeatureStore

WORK = ["featurize", "--model", "toy:net", "--data", "toy:digits", "--proj-dim", 64]
WORK += ["--batch-size", 4, "--no-progress"]


def test_shards_of_a_job_array(invoke, stores):
    for i in (2, 0, 1):
        shown = invoke(*WORK, "--out", "rows.h5", "--shard", f"{i}/3").stdout
        assert f"rows.shard-0000{i}-of-00003.h5: {[4, 8, 8][i]} rows of 64 float32" in shown
    assert invoke("join", "rows.h5").stdout.endswith("rows.h5: 20 rows in 3 files\n")
    found = json.loads(invoke("join", "rows.h5", "--json").stdout)
    assert (found["rows"], found["width"]) == (20, 64)
    assert found["files"][2] == "rows.shard-00002-of-00003.h5"
    assert torch.allclose(FeatureStore("rows.h5").torch(), FeatureStore("train.h5").torch())
    for command in (["verify"], ["info"], ["ntk"], ["topk", "test.h5"]):
        assert invoke(*command, "rows.h5").stdout


def test_rows_are_appended(invoke, stores):
    invoke("join", "all.h5", "train.h5", "test.h5")
    store = FeatureStore("all.h5")
    assert len(store) == 29
    assert torch.equal(store[20:], FeatureStore("test.h5").torch())


def test_what_is_missing_is_said(refused, invoke, toy):
    assert "no shards to join" in refused("join", "rows.h5", code=1)
    invoke(*WORK, "--out", "rows.h5", "--shard", "1/3")
    message = refused("join", "rows.h5", code=1)
    assert "rows 0 to 3 are in no shard" in message and "--shard 0/3" in message


def test_shard_must_be_a_pair(refused, toy):
    for text in ("3", "a/b", "-1/3", "1/", "/3"):
        message = refused(*WORK, "--out", "rows.h5", f"--shard={text}")
        assert f"--shard is '{text}'; expected I/N, from 0/16 to 15/16" in message
    assert "shard 3/3: expected 0 to 2" in refused(*WORK, "--out", "rows.h5", "--shard", "3/3")


def test_half_precision_and_a_number_of_files(invoke, toy):
    shown = invoke(*WORK, "--out", "rows.h5", "--shards", 2, "--storage", "fp16").stdout
    store = FeatureStore("rows.h5")
    assert store.header.dtype == "float16" and len(store.files) == 2
    assert "20 rows of 64 float16" in shown
    assert "nothing to do" in invoke(*WORK, "--out", "rows.h5", "--storage", "fp16").stdout
