import json
import sys

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def test_page_with_queries(invoke, stores):
    shown = invoke(
        "report", "train.h5", "--queries", "test.h5", "--out", "r.html", "-k", 3,
        "--data", "toy:digits", "--query-data", "toy:test_digits", "--num-queries", 4,
        "--title", "Toy <digits>",
    ).stdout  # fmt: skip
    assert shown.splitlines()[-1] == "r.html"
    assert "nearest neighbour has the same class: " in shown
    page = (stores / "r.html").read_text()
    assert "<h1>Toy &lt;digits&gt;</h1>" in page
    assert page.count("<article") == 4
    assert page.partition('id="mislabelled"')[0].count('class="thumb"') == 4 * (1 + 3)
    assert "pntk report train.h5 --queries test.h5 --data toy:digits" in page


def test_page_without_queries(invoke, stores):
    found = json.loads(invoke("report", "train.h5", "--out", "r.html", "--json").stdout)
    assert found["report"] == "r.html" and found["warning"] == ""
    assert set(found["headline"]) == {
        "nearest neighbour has the same class",
        "accuracy of 5 nearest neighbours",
    }
    assert "Tangent kernel of train.h5" in (stores / "r.html").read_text()


def test_page_with_probabilities_and_influence(invoke, stores):
    pytest.importorskip("sklearn")
    probs = np.full((9, 3), 0.05)
    probs[np.arange(9), np.arange(9) % 3] = 0.9  # right, but for row 4
    probs[4] = [0.9, 0.05, 0.05]
    np.save("probs.npy", probs)
    found = json.loads(
        invoke(
            "report", "train.h5", "--queries", "test.h5", "--out", "r.html", "--probs", "probs.npy",
            "--influence", "cosine", "--normalize", "none", "--alpha", 0.01, "-k", 2,
            "--json",
        ).stdout
    )  # fmt: skip
    assert found["headline"]["accuracy of the network"] == "88.9%"
    ((name, numbers),) = found["surrogates"].items()
    assert name == "glm of the kernel as it is, alpha 0.01"
    assert numbers["examples"] == 9 and numbers["network_accuracy"] == pytest.approx(8 / 9)
    page = (stores / "r.html").read_text()
    assert page.index('data-query="4"') < page.index('data-query="0"')
    assert page.count("Most influential") == 9
    assert "Influence is the cosine of φ and φᵢ" in page
    assert "--probs probs.npy --normalize none --alpha 0.01 --influence cosine" in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-k", 20], "k is 20; expected 1 to 19"),
        (["-k", 21, "--queries", "test.h5"], "k is 21; expected 1 to 20"),
        (["--query-data", "toy:digits"], "--query-data goes with --queries"),
        (["--probs", "ones.npy"], "--probs goes with --queries; a surrogate is compared on"),
        (["--influence", "dot"], "--influence goes with --queries; each training row"),
        (["--queries", "test.h5", "--normalize", "none"], "--normalize is for the surrogate"),
        (
            ["--queries", "test.h5", "--alpha", 1],
            "--alpha is for the surrogate",
        ),
        (["--queries", "test.h5", "--influence", "trak"], "no column 'reweighting'"),
        (["--queries", "test.h5", "--influence", "influence"], "needs gradients of the loss"),
        (["--queries", "test.h5", "--probs", "ones.npy"], "sum to 3 in row 0"),
        (["--queries", "train.h5", "--probs", "ones.npy"], "shape (9, 3); expected [20, c]"),
        (["--data", "toy:test_digits"], "9 examples and the store 20 rows"),
        (["--data", "toy:absent"], "no attribute 'absent'"),
        (["--out", "absent/r.html"], "the folder absent does not exist"),
    ],
)
def test_errors(refused, stores, more, message):
    np.save("ones.npy", np.ones((9, 3)))
    assert message in refused("report", "train.h5", "--out", "r.html", *more)
    assert not (stores / "r.html").exists()


def test_missing_extra(refused, stores, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert 'pip install "pntk[analysis]"' in refused("report", "train.h5", "--out", "r.html")


def test_joined_shards_and_half_precision(invoke, stores):
    invoke("export", "train.h5", "--out", "half.h5", "--storage", "fp16")
    invoke("join", "all.h5", "half.h5")
    invoke("export", "test.h5", "--out", "queries.h5", "--storage", "fp16")
    invoke("report", "all.h5", "--queries", "queries.h5", "--out", "report.html")
    page = (stores / "report.html").read_text()
    assert "Tangent kernel of " in page and "nearest neighbour has the same class" in page
