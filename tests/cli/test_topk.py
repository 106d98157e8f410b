import csv
import json

import numpy as np
import pytest

import pntk
from pntk.cli.topk import parse_rows
from pntk.errors import ConfigError
from pntk.store import FeatureStore


@pytest.fixture
def expected(stores):
    return pntk.topk(FeatureStore("test.h5"), FeatureStore("train.h5"), 3)


def test_table(invoke, expected):
    lines = invoke("topk", "test.h5", "train.h5", "-k", 3).stdout.splitlines()
    assert lines[0].split() == ["query", "label", "#1", "#2", "#3"]
    assert len(lines) == 10
    labels = FeatureStore("train.h5").labels
    row, score = int(expected.indices[2, 0]), float(expected.values[2, 0])
    assert lines[3].split()[:5] == ["2", "2", str(row), f"({labels[row]})", f"{score:.4g}"]


def test_json(invoke, expected):
    found = json.loads(invoke("topk", "test.h5", "train.h5", "-k", 3, "--json").stdout)
    assert [hit["row"] for hit in found[4]["neighbours"]] == expected.indices[4].tolist()
    assert found[4]["query"] == 4
    assert found[4]["label"] == 1


def test_long_tables_are_cut(invoke, stores):
    shown = invoke("topk", "train.h5", "train.h5", "-k", 1, "--rows", "0:20,0:3")
    assert len(shown.stdout.splitlines()) == 21
    assert "3 more queries" in shown.stderr


def test_dot(invoke, stores):
    args = ["topk", "test.h5", "train.h5", "--metric", "dot", "--json"]
    found = json.loads(invoke(*args).stdout)
    a, b = FeatureStore("test.h5").numpy(), FeatureStore("train.h5").numpy()
    assert found[0]["neighbours"][0]["score"] == pytest.approx((a @ b.T)[0].max(), rel=1e-5)


def test_files(invoke, expected, stores):
    for name in ("hits.npz", "hits.csv", "hits.json"):
        shown = invoke("topk", "test.h5", "train.h5", "-k", 3, "--rows", "5,0", "--out", name)
        assert shown.stdout == ""
        assert f"wrote 2 x 3 neighbours to {name}" in shown.stderr
    with np.load("hits.npz") as file:
        arrays = dict(file)
    assert arrays["queries"].tolist() == [5, 0]
    assert np.array_equal(arrays["indices"], expected.indices[[5, 0]])
    assert arrays["query_labels"].tolist() == [2, 0]
    assert arrays["labels"].shape == arrays["scores"].shape == (2, 3)
    records = json.loads((stores / "hits.json").read_text())
    with open("hits.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert list(lines[0]) == ["query", "query_label", "rank", "row", "label", "score"]
    assert int(lines[4]["row"]) == records[1]["neighbours"][1]["row"]
    assert lines[4]["rank"] == "2"


@pytest.mark.parametrize(
    ("text", "rows"),
    [(None, [0, 1, 2, 3]), ("2", [2]), ("3,0:2", [3, 0, 1]), (":2", [0, 1]), ("2:", [2, 3])],
)
def test_parse_rows(text, rows):
    assert parse_rows(text, 4).tolist() == rows


@pytest.mark.parametrize("text", ["", "a", "1,,2", "4", "-1", "2:2", "0:5", "0:2:1", "1.5"])
def test_rows_that_are_not_there(text):
    with pytest.raises(ConfigError, match="--rows"):
        parse_rows(text, 4)


def test_errors(refused, invoke, stores):
    assert "-k is 21; expected 1 to 20" in refused("topk", "test.h5", "train.h5", "-k", 21)
    assert "--rows names '9'" in refused("topk", "test.h5", "train.h5", "--rows", "9")
    message = refused("topk", "test.h5", "train.h5", "--out", "hits.txt")
    assert "ends in '.txt'; expected .npz, .csv, .json" in message
    assert "'-k'" in invoke("topk", "test.h5", "train.h5", "-k", 0, code=2).stderr
    args = ["topk", "test.h5", "train.h5", "--metric", "l2"]
    assert "'l2' is not one of" in invoke(*args, code=2).stderr
    (stores / "bad.h5").write_text("no store")
    assert "bad.h5" in refused("topk", "bad.h5", "train.h5", code=1)
