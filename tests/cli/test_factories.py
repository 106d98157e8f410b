import re

import pytest
import torch
from torch import nn

from pntk.cli.factories import load_data, load_model, load_object, load_weights, pick_device
from pntk.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("toy", "--model is 'toy'; expected module:factory"),
        (":net", "expected module:factory"),
        ("toy:", "expected module:factory"),
        ("toys:net", "no module 'toys'"),
        ("toy.sub:net", "importing 'toy.sub' raised|no module 'toy.sub'"),
        ("toy:nett", "has no attribute 'nett'; near it: net"),
        ("toy:zzzzzz", "has no attribute 'zzzzzz'$"),
        ("toy:broken", "toy:broken raised RuntimeError: no such file: digits.npz"),
        ("toy:digits", "returned a tuple; expected a torch.nn.Module"),
        ("needs:net", "importing 'needs' raised ModuleNotFoundError: No module named 'absent'"),
        ("typo:net", "importing 'typo' raised SyntaxError"),
    ],
)
def test_what_was_wrong_is_named(toy, spec, message):
    (toy / "needs.py").write_text("import absent\n")
    (toy / "typo.py").write_text("def net(:\n")
    with pytest.raises(ConfigError, match=message):
        load_model(spec, None, CPU, keep_mode=False)


def test_current_folder_is_on_the_import_path(toy, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(toy)])
    assert isinstance(load_object("toy:net", "--model"), nn.Module)


def test_objects_are_taken_as_they_are(toy):
    assert load_object("toy:CLASSES", "--data") == 3
    assert isinstance(load_model("toy:instance", None, CPU, keep_mode=False), nn.Linear)
    assert len(load_data("toy:Slow")) == 60  # a class is called


def test_data_that_is_nothing(toy):
    with pytest.raises(ConfigError, match="--query-data: toy:nothing returned None"):
        load_data("toy:nothing", "--query-data")


def test_mode(toy):
    assert not load_model("toy:net", None, CPU, keep_mode=False).training
    assert load_model("toy:net", None, CPU, keep_mode=True).training


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_checkpoint(tmp_path, wrap):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    state = source.state_dict()
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "a.pt")
    load_weights(target, tmp_path / "a.pt")
    assert torch.equal(source.weight, target.weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "does not fit Linear: missing bias;"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(1)},
            "does not fit Linear: unexpected scale;",
        ),
        (
            {f"module.{i}": torch.zeros(1) for i in range(8)},
            r"missing weight, bias; unexpected module\.0, .*module\.4 and 3 more",
        ),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "size mismatch for weight"),
        ({"epoch": 3}, "holds a dict with 'epoch'; expected a state dict"),
        (torch.zeros(2), "holds a Tensor; expected a state dict"),
    ],
)
def test_checkpoint_that_does_not_fit(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=message):
        load_weights(nn.Linear(3, 2), tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape("a.pt cannot be read")):
        load_weights(nn.Linear(3, 2), tmp_path / "a.pt")


def test_checkpoint_with_code_is_not_run(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "a.pt")  # a pickled module, not a state dict
    with pytest.raises(ConfigError, match="cannot be read"):
        load_weights(nn.Linear(3, 2), tmp_path / "a.pt")


def test_device():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "meta", ""):
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
            pick_device(name)
    with pytest.raises(ConfigError, match=r"PyTorch sees \d+ CUDA devices"):
        pick_device("cuda:99")
