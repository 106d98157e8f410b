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
    assert found[4]["index"] == "exact" and found[4]["approximate"] is False


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
    assert list(lines[0]) == ["query", "query_label", "rank", "row", "label", "score", "index"]
    assert lines[0]["index"] == arrays["index"] == "exact"
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


def test_budget(invoke, refused, expected):
    args = ["topk", "test.h5", "train.h5", "-k", 3, "--memory-budget"]
    found = json.loads(invoke(*args, "100MB", "--json").stdout)
    assert [hit["row"] for hit in found[4]["neighbours"]] == expected.indices[4].tolist()
    assert "memory_budget is '1 apple'" in refused(*args, "1 apple")
    assert "memory_budget is 2,000 bytes; rows of this width" in refused(*args, "2kB")


def test_skipped_queries_have_no_neighbours(invoke, stores):
    args = ["featurize", "--model", "toy:net", "--data", "toy:with_nan", "--out", "nan.h5"]
    invoke(*args, "--on-nonfinite", "skip", "--proj-dim", 64)
    for rows in ([], ["--rows", "0:20"]):
        found = json.loads(invoke("topk", "nan.h5", "nan.h5", "-k", 2, "--json", *rows).stdout)
        assert found[0]["neighbours"][0]["row"] == 0
        assert [hit["row"] for hit in found[3]["neighbours"]] == [-1, -1]
        assert found[3]["neighbours"][0]["score"] is None


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_index(invoke, expected, kind):
    pytest.importorskip("faiss", reason="needs FAISS")
    args = ["topk", "test.h5", "train.h5", "-k", 3, "--index", kind]
    shown = invoke(*args, "--json")
    found = json.loads(shown.stdout)
    # so few rows are all looked through
    assert [hit["row"] for hit in found[4]["neighbours"]] == expected.indices[4].tolist()
    assert found[4]["index"] == kind and found[4]["approximate"] is (kind != "flat")
    assert ("approximate: " in shown.stderr) is (kind != "flat")
    table = invoke(*args).stdout
    assert (f"approximate neighbours ({kind} index)" in table) is (kind != "flat")
    invoke(*args, "--out", "hits.csv")
    with open("hits.csv", newline="") as file:
        assert {line["index"] for line in csv.DictReader(file)} == {kind}


def test_index_file(invoke, refused, expected, stores):
    pytest.importorskip("faiss", reason="needs FAISS")
    args = ["topk", "test.h5", "train.h5", "-k", 3, "--index-file", "train.faiss", "--json"]
    first = invoke(*args, "--index", "flat")
    assert "wrote the index of 20 rows to train.faiss" in first.stderr
    written = (stores / "train.faiss").stat().st_mtime_ns
    again = invoke(*args, "--index", "flat")
    assert "wrote" not in again.stderr and again.stdout == first.stdout
    assert (stores / "train.faiss").stat().st_mtime_ns == written
    assert "has the kind 'flat', not 'hnsw'" in refused(*args, "--index", "hnsw")
    message = refused(*args, "--index", "flat", "--metric", "dot")
    assert "has the metric 'cosine', not 'dot'" in message
    args[1:3] = ["train.h5", "test.h5"]
    assert "was made of other rows (different rows" in refused(*args, "--index", "flat")
    assert "--index-file train.faiss needs --index" in refused(*args)
    args[6] = "test.h5"
    assert "test.h5: is not an index of pntk" in refused(*args, "--index", "flat", code=1)


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
