import json

import numpy as np
import pytest

from pntk import FeatureStore, Featurizer
from pntk.attribution import attribute
from pntk.ntk.kernel_file import open_kernel


@pytest.fixture
def stores(toy):
    """Margin rows train.h5 [20, 8] and test.h5 [9, 8], and of another checkpoint; loss rows."""
    import torch
    import toy as module

    for number in range(2):
        model = module.net().eval()
        with torch.no_grad():
            model[1].weight.add_(number)
        for output in ("margin", "loss"):
            f = Featurizer(model, output, proj_dim=8, seed=number)
            for data, name in ((module.digits(), "train"), (module.test_digits(), "test")):
                path = toy / f"{name}{number}-{output}.h5"
                f.featurize(data, path, progress=False).close()
    return toy


MARGIN = ("train0-margin.h5,train1-margin.h5", "test0-margin.h5,test1-margin.h5")


def rows(output="margin"):
    return tuple(
        [FeatureStore(f"{name}{number}-{output}.h5") for number in range(2)]
        for name in ("train", "test")
    )


def test_json_is_the_scores(invoke, stores):
    shown = invoke("attribute", *MARGIN, "--top", 3, "--both", "--ridge", "auto", "--json")
    found = json.loads(shown.stdout)
    expected = attribute(*rows(), ridge="auto", top=3, both=True)
    assert len(found) == 9
    for end, part in expected._asdict().items():
        assert [hit["row"] for hit in found[4][end]] == part.indices[4].tolist()
        assert [hit["score"] for hit in found[4][end]] == pytest.approx(part.values[4].tolist())
    assert found[4]["label"] == 1 and found[4]["method"] == "trak"
    assert found[4]["highest"][0]["label"] == found[4]["highest"][0]["row"] % 3


def test_table(invoke, stores):
    shown = invoke("attribute", "train0-margin.h5", "test0-margin.h5", "--both", "--ridge", "1")
    lines = shown.stdout.splitlines()
    ranks = [f"{sign}{rank}" for sign in "#-" for rank in range(1, 6)]
    assert lines[0].split() == ["target", "label", *ranks]
    assert len(lines) == 10
    assert "its row, (its label), its score" in shown.stderr


def test_all_scores_to_hdf5(invoke, stores):
    arguments = ["attribute", *MARGIN, "--ridge", "1", "--out", "scores.h5"]
    assert "wrote 20 x 9 scores to scores.h5" in invoke(*arguments).stderr
    expected = attribute(*rows(), ridge=1.0)
    assert np.allclose(open_kernel("scores.h5").values, expected, rtol=1e-5)
    assert "exists; choose another path" in invoke(*arguments, code=2).stderr
    again = ["attribute", *MARGIN, "--ridge", "1", "--out", "more.h5", "--json"]
    assert json.loads(invoke(*again).stdout)["shape"] == [20, 9]
    with_top = ["attribute", *MARGIN, "--ridge", "1", "--out", "third.h5", "--top", 2, "--json"]
    assert len(json.loads(invoke(*with_top).stdout)[0]["highest"]) == 2


def test_best_to_files(invoke, stores):
    arguments = ["attribute", *MARGIN, "--ridge", "1", "--top", 2, "--both", "--out"]
    for name in ("best.npz", "best.json"):
        shown = invoke(*arguments, name)
        assert shown.stdout == "" and f"wrote the best of 9 targets to {name}" in shown.stderr
    expected = attribute(*rows(), ridge=1.0, top=2, both=True)
    with np.load("best.npz") as file:
        assert np.array_equal(file["indices"], expected.highest.indices)
        assert np.array_equal(file["lowest_indices"], expected.lowest.indices)
        assert np.allclose(file["scores"], expected.highest.values)
    records = json.loads((stores / "best.json").read_text())
    assert [hit["row"] for hit in records[0]["lowest"]] == expected.lowest.indices[0].tolist()


def test_tracin(invoke, stores):
    arguments = [text.replace("margin", "loss") for text in MARGIN]
    shown = invoke(
        "attribute", *arguments, "--method", "tracin", "--learning-rates", "0.1,0.01", "--json"
    )
    expected = attribute(*rows("loss"), "tracin", weights=[0.1, 0.01], top=5)
    assert [hit["row"] for hit in json.loads(shown.stdout)[2]["highest"]] == (
        expected.indices[2].tolist()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.h5", "test0-margin.h5"], "names 'none.h5', which is no file"),
        (["train0-margin.h5,", "test0-margin.h5"], "which is no file"),
        (["train0-margin.h5", "test1-margin.h5"], "differ in projection"),
        ([*MARGIN, "--ridge", "much"], "--ridge is 'much'; expected auto or a number"),
        ([*MARGIN, "--learning-rates", "a"], "--learning-rates is 'a'; expected numbers"),
        ([*MARGIN, "--learning-rates", "0.1"], "weights is for method tracin"),
        ([*MARGIN, "--top", "21"], "top is 21; expected 1 to 20"),
        ([*MARGIN, "--out", "x.csv"], "ends in '.csv'; expected .h5, .npz, .json"),
        ([*MARGIN, "--out", "x.h5", "--both"], "--both is of the best, and x.h5 is for all"),
        ([*MARGIN, "--method", "influence"], "needs gradients of the loss"),
    ],
)
def test_refused(refused, stores, arguments, message):
    assert message in refused("attribute", *arguments)


def test_many_targets_are_cut(invoke, stores):
    shown = invoke("attribute", "train0-margin.h5", "train0-margin.h5", "--method", "dot")
    assert len(shown.stdout.splitlines()) == 21
    assert "more targets" not in shown.stderr


def test_stopped_work_says_how_to_go_on(invoke, stores, monkeypatch):
    from pntk.ntk.kernel_file import KernelWriter

    write, written = KernelWriter.write, []

    def stop(self, i, j, tile):
        if written:
            raise KeyboardInterrupt
        written.append((i, j))
        write(self, i, j, tile)

    arguments = ["attribute", *MARGIN, "--ridge", "1", "--out", "scores.h5"]
    monkeypatch.setattr("pntk.attribution.tiles.Plan._choose_tile", lambda self: 10)
    with monkeypatch.context() as patch:
        patch.setattr(KernelWriter, "write", stop)
        shown = invoke(*arguments, code=130)
    assert "1 of 2 tiles are in" in shown.stderr and "go on from there with" in shown.stderr
    assert "wrote 20 x 9 scores" in invoke(*arguments).stderr
    monkeypatch.setattr("pntk.cli.attribute.attribute", _interrupted)
    assert "no tile was written" in invoke(*arguments[:-1], "other.h5", code=130).stderr


def _interrupted(*_, **__):
    raise KeyboardInterrupt


def test_without_reweighting(invoke, stores):
    import torch

    args = ["attribute", "train0-loss.h5", "test0-loss.h5", "--ridge", "auto", "--json"]
    assert "--no-reweighting" in invoke(*args, code=2).stderr
    found = json.loads(invoke(*args, "--no-reweighting", "--top", 2).stdout)
    train, test = FeatureStore("train0-loss.h5"), FeatureStore("test0-loss.h5")
    best = attribute(train, test, ridge="auto", reweighting=torch.ones(20), top=2)
    shown = [[hit["row"] for hit in target["highest"]] for target in found]
    assert shown == best.indices.tolist()
