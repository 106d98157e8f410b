import json
import os
import sys
from pathlib import Path

import pytest
import torch

from pntk.cli import digits
from pntk.cli.demo_folder import DemoFolder
from pntk.errors import ConfigError
from pntk.store import FeatureStore

for module in ("sklearn", "jinja2", "matplotlib"):
    pytest.importorskip(module)


def test_from_training_to_report(start, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = start("demo", "--fast", "--out", "demo")
    out, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    report = Path(out.splitlines()[-1])
    assert report == tmp_path / "demo" / "report.html"
    page = report.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("Most influential") == page.count("<article") == 60
    for section in ("neighbours", "mislabelled", "surrogate", "kernel", "coverage"):
        assert f'<section id="{section}"' in page
    assert len(page) < 2_000_000
    assert "training a LeNet on 800 digits" in errors
    made = json.loads((tmp_path / "demo" / "demo.json").read_text())["results"]
    assert made["accuracy"]["network"] > 0.8
    assert made["accuracy"]["kernel_neighbours"] > 0.8
    assert made["rows"] == {"train": 800, "test": 200}
    names = [numbers["name"] for numbers in made["surrogates"]]
    assert [name.partition(",")[0] for name in names] == [
        "glm of the kernel as it is",
        "glm of cosines",
    ]
    assert all(numbers["kendall_tau"] > 0.4 for numbers in made["surrogates"])
    assert f"{made['surrogates'][0]['kendall_tau']:.3f}" in out
    assert [Path(store).name for store in made["stores"]] == [
        "train.h5", "train-margin.h5", "test.h5", "test-margin.h5",
    ]  # fmt: skip
    with FeatureStore(tmp_path / "demo" / "train.h5") as store:
        assert store.shape == (800, 1024)
        assert store.verify().ok

    # again, with what is there
    before = (tmp_path / "demo" / "train.h5").read_bytes()
    again = json.loads(invoke("demo", "--fast", "--out", "demo", "--json").stdout)
    assert again["accuracy"] == made["accuracy"]
    assert again["surrogates"] == made["surrogates"]
    assert (tmp_path / "demo" / "train.h5").read_bytes() == before

    # elsewhere, from nothing: the same
    invoke("demo", "--fast", "--out", "other")
    for name in ("model.pt", "kernel.h5"):
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "demo" / name).read_bytes()
    with FeatureStore("demo/train.h5") as first, FeatureStore("other/train.h5") as second:
        assert first.numpy().tobytes() == second.numpy().tobytes()

    # another seed in the same folder: afresh, and nothing else is touched
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    other = json.loads(invoke("demo", "--fast", "--out", "demo", "--seed", 1, "--json").stdout)
    assert other["weights"] != made["weights"]
    assert (tmp_path / "demo" / "mine.txt").read_text() == "mine"
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "pntk demo --out demo --fast --seed 1" in page


def test_errors(refused, invoke, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "is a file; expected a folder" in refused("demo", "--out", tmp_path / "file")
    message = refused("demo", "--out", tmp_path / "a" / "b")
    assert "does not exist" in message
    assert "--seed" in invoke("demo", "--seed", -1, code=2).stderr
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "the demo needs sklearn" in refused("demo", "--out", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_folder_keeps_what_is_not_its_own(tmp_path):
    (tmp_path / "train.h5").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds train\.h5, which the demo did not make"):
        DemoFolder(tmp_path, {"seed": 0})
    assert os.listdir(tmp_path) == ["train.h5"]
    (tmp_path / "train.h5").unlink()
    (tmp_path / "demo.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds demo\.json"):
        DemoFolder(tmp_path, {"seed": 0})


def test_folder_of_other_settings_starts_afresh(tmp_path):
    for seed, kept in ((0, False), (0, True), (1, False), (1, True)):
        folder = DemoFolder(tmp_path, {"seed": seed})
        assert folder.path("model.pt").exists() == kept
        folder.path("model.pt").write_text("weights")
        (tmp_path / "mine.txt").write_text("mine")
    assert (tmp_path / "mine.txt").exists()


def test_digits_are_split_by_class():
    train, test = digits.load()
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert torch.bincount(test.labels).min() >= 34
    assert train.images.shape[1:] == (1, 8, 8)
    assert torch.equal(digits.train_data().labels, train.labels)
    assert torch.equal(digits.test_data().images, test.images)


def test_training_is_deterministic_and_leaves_no_trace():
    data = digits.load(100, 50)[0]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = (digits.train(data, 1, seed=3) for _ in range(2))
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not first.training
