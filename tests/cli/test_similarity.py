import json

import numpy as np
import pytest
import torch

from pntk.representation import layer_similarity, similarity
from pntk.store import FeatureStore

WORK = ("similarity", "--model", "toy:net", "--data", "toy:digits", "--no-progress")


@pytest.fixture
def other(toy):
    """other.pt, weights of the same network."""
    import toy as module

    torch.manual_seed(5)
    model = module.net()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(model.state_dict(), "other.pt")
    return model.eval()


def test_two_models(invoke, other):
    import toy as module

    found = json.loads(invoke(*WORK, "--checkpoint-b", "other.pt", "--json").stdout)
    expected = layer_similarity(module.net().eval(), other, module.digits(), progress=False)
    np.testing.assert_allclose(found["matrix"], expected.matrix, atol=1e-6)
    assert found["layers_a"] == ["1", "3"]
    assert (found["measure"], found["samples"], found["minibatch"]) == ("cka", 20, 256)
    shown = invoke(*WORK, "--checkpoint-b", "other.pt").stdout
    assert "without bias" in shown and f"{expected.matrix[0, 1]:.4f}" in shown


def test_one_model_with_options_of_the_measure(invoke, toy):
    args = ["--measure", "neighbours", "--option", "k=3", "--option", "metric=euclidean"]
    found = json.loads(invoke(*WORK, *args, "--layers", "1", "--layers", "2", "--json").stdout)
    assert found["layers_a"] == found["layers_b"] == ["1", "2"]
    assert found["matrix"][0][0] == 1 and found["matrix"][0][1] == found["matrix"][1][0] < 1
    whole = json.loads(invoke(*WORK, "--minibatch", 0, "--json").stdout)
    assert whole["minibatch"] is None


def test_files(invoke, toy, other, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    files = ["--out", "s.npz", "--plot", "s.png", "--report", "s.html"]
    shown = invoke(*WORK, "--checkpoint-b", "other.pt", *files).stdout
    assert "s.npz" in shown and "s.html" in shown
    with np.load("s.npz") as read:
        assert read["layers_a"].tolist() == ["1", "3"]
    assert (toy / "s.png").read_bytes().startswith(b"\x89PNG")
    page = (toy / "s.html").read_text()
    assert "Similarity of toy:net and other.pt" in page and "Layer by layer" in page
    again = "pntk similarity --model toy:net --checkpoint-b other.pt --data toy:digits"
    assert again in page
    monkeypatch.setattr("pntk.cli.similarity.MOST_COLUMNS", 1)
    assert "most alike" in invoke(*WORK).stdout


def test_two_stores(invoke, stores):
    rows = FeatureStore("train.h5").numpy()
    work = ["featurize", "--model", "toy:net", "--data", "toy:digits", "--proj-dim", 64]
    invoke(*work, "--seed", 1, "--out", "seed1.h5", "--no-progress")
    found = json.loads(invoke("similarity", "train.h5", "seed1.h5", "--json").stdout)
    expected = similarity(rows, FeatureStore("seed1.h5").numpy())
    assert found["similarity"] == pytest.approx(expected)
    assert found["samples"] == 20
    shown = invoke("similarity", "train.h5", "train.h5", "--measure", "procrustes").stdout
    assert "1.0000" in shown


def test_skipped_rows_are_left_out(invoke, stores):
    work = ["featurize", "--model", "toy:net", "--data", "toy:with_nan", "--proj-dim", 64]
    invoke(*work, "--on-nonfinite", "skip", "--out", "nan.h5", "--no-progress")
    result = invoke("similarity", "train.h5", "nan.h5", "--json")
    assert "2 rows were skipped" in result.stderr
    found = json.loads(result.stdout)
    assert (found["samples"], found["similarity"]) == (18, pytest.approx(1))


def test_refusals(invoke, refused, stores):
    assert "expected either two stores, or --model" in refused("similarity")
    assert "there are 1 files; expected two stores" in refused("similarity", "train.h5")
    assert "--out: for models only" in refused(
        "similarity", "train.h5", "test.h5", "--out", "s.npz"
    )
    assert "train.h5 has 20 rows and test.h5 9" in refused("similarity", "train.h5", "test.h5")
    assert "model_a (Sequential) has no layer 'conv'" in refused(*WORK, "--layers", "conv")
    assert "cka has no option k" in refused(*WORK, "--option", "k=3")
    assert "--option is 'k'; expected name=value" in refused(*WORK, "--option", "k")
    assert "ends in '.txt'; expected .npz" in refused(*WORK, "--out", "s.txt")
    few = refused(*WORK, "--measure", "cca", "--layers", "0", "--data", "toy:test_digits", code=1)
    assert "CCA needs at least 13 samples here" in few
    assert "memory_budget is 9 bytes" in refused(
        *WORK, "--measure", "svcca", "--memory-budget", "9B"
    )
    invoke("ntk", "train.h5", "--out", "kernel.h5", "--no-progress")
    shown = refused("similarity", "kernel.h5", "kernel.h5")
    assert "kernel.h5 is a kernel; expected a store of rows" in shown
