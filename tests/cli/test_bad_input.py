"""What users get wrong, and what they get for it: a line that says so, and no file lost."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

MODULE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))

def double(): return net().double()

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(30, 3)

    def forward(self, x):
        return {"logits": self.last(x.flatten(1))}

def one(): return nn.Sequential(nn.Flatten(), nn.Linear(30, 1))

def digits(n=12):
    x = torch.rand(n, 1, 5, 6, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(n) % 3

def colour(): return digits()[0].repeat(1, 3, 1, 1), digits()[1]
def wrong(): return digits()[0], digits()[1] + 5
def arrays(): return tuple(v.numpy() for v in digits())

def holes():
    x, y = digits()
    x[7, 0, 0, 0] = float("nan")
    return x, y

def retrain():
    def fit(indices, number):
        if number == 2:
            raise RuntimeError("no such device")
        return [float(indices.sum()), float(number)]
    return fit
"""
LANDSCAPE = ("landscape", "--out", "land.npz", "--points", 2, "--no-progress")
FOURIER = ("fourier", "--out", "map.npz", "--size", 2, "--no-progress")
SIMILARITY = ("similarity", "--no-progress")
DIGITS = ("--model", "bad:net", "--data", "bad:digits")


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("bad", None)


@pytest.mark.parametrize("command", [LANDSCAPE, FOURIER, SIMILARITY])
@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("bad:net", "bad:colour", r"float32 (2, 3, 5, 6): expected ones of the shape and type"),
        ("bad:double", "bad:digits", "whose parameters are torch.float64, raised RuntimeError"),
        ("bad:net", "bad:arrays", "a tuple of ndarray, ndarray; expected tensors alone"),
        ("bad:net", "bad:holes", "NaN"),
    ],
)
def test_data_that_a_model_cannot_take(refused, command, model, data, message):
    assert message in refused(*command, "--model", model, "--data", data, code=1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*LANDSCAPE, "--model", "bad:Named", "--data", "bad:digits"), "given outputs dict and"),
        ((*LANDSCAPE, "--model", "bad:net", "--data", "bad:wrong"), "class numbers below c"),
        ((*FOURIER, "--model", "bad:net", "--data", "bad:wrong"), "targets are 5 to 6 and the"),
        (("nads", "bad:one", "--shape", "1,5,5"), "float32 (1, 1, 5, 5): expected ones of"),
        (
            ("nads", "bad:one", "--shape", "1,5,5", "--jacobian", "finite_difference"),
            "its inputs were torch.float32",
        ),
    ],
)
def test_refused(refused, command, message):
    assert message in refused(*command, code=1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("neighbours", "k=abc"), "k is 'abc'; expected an integer of at least 1"),
        (("neighbours", "k=1.5"), "k is 1.5; expected an integer"),
        (("svcca", "threshold=x"), "threshold is 'x'; expected a share"),
        (("svcca", "dims=1.5"), "dims is 1.5; expected an integer"),
        (("cca", "ridge=-1"), "ridge is -1; expected a variance"),
        (("rbf_cka", "sigma=x"), "sigma is 'x'; expected a positive"),
        (("cka", "debiased=no"), "debiased is 'no'; expected True or False"),
        (("cka", "max_samples=x"), "max_samples is 'x'; expected at least 2"),
        (("cka", "channel_axis=x"), "channel_axis is 'x'; expected the number"),
    ],
)
def test_options_of_measures_before_any_data(refused, option, message):
    given = ("--measure", option[0], "--option", option[1])
    assert message in refused(*SIMILARITY, *given, "--model", "bad:net", "--data", "bad:nothing")


def test_too_few_samples_for_cca_before_activations_are_kept(refused, monkeypatch):
    monkeypatch.setattr("pntk.representation.layers.keep", None)  # would fail otherwise
    said = refused(*SIMILARITY, *DIGITS, "--measure", "cca", code=1)
    assert "x has 12 samples of 24 neurons; CCA needs at least 25" in said
    said = refused(*SIMILARITY, *DIGITS, "--measure", "pwcca", "--neurons", "filter", code=1)
    assert "expected the same samples in the same order" in said


@pytest.mark.parametrize("command", [LANDSCAPE, FOURIER, SIMILARITY])
def test_files_of_others_are_left_alone(invoke, command):
    np.savez("theirs.npz", precious=np.arange(3))
    torch.save({"w": torch.ones(2)}, "net.pt")
    before = Path("theirs.npz").read_bytes(), Path("net.pt").read_bytes()
    code = 1 if command is LANDSCAPE else 2
    invoke(*command, *DIGITS, "--out", "theirs.npz", code=code)
    assert (
        "is a zip file, such as a checkpoint"
        in invoke(*command, *DIGITS, "--plot", "net.pt", code=2).stderr
    )
    invoke(*command, *DIGITS, "--out", "ours.npz", "--plot", "ours.npz", code=2)
    invoke(*command, *DIGITS, "--out", "ours.npz", "--plot", "a.png", "--report", "a.png", code=2)
    assert not Path("ours.npz").exists()
    assert before == (Path("theirs.npz").read_bytes(), Path("net.pt").read_bytes())
    for _ in range(2):  # its own may be written again
        invoke(*command, *DIGITS, "--out", "our own.npz")


def test_a_landscape_says_how_to_go_on(invoke, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pntk.cli.landscape.loss_landscape", stopped)
    assert "stopped: no point is in land.npz yet" in invoke(*LANDSCAPE, *DIGITS, code=130).stderr


def test_training_that_fails_keeps_what_there_is(invoke):
    train = ("lds", "--train", "bad:retrain", "--samples", 8, "--count", 4, "--out", "runs.npz")
    said = invoke(*train, "--no-progress", code=2).stderr
    assert "raised RuntimeError: no such device" in said
    assert "2 of 4 models are in runs.npz" in said


def test_scores_of_other_targets_are_seen_after_one_model(invoke):
    np.save("scores.npy", np.random.default_rng(0).normal(size=(8, 3)))
    train = ("lds", "scores.npy", "--train", "bad:retrain", "--count", 4, "--out", "runs.npz")
    said = invoke(*train, "--no-progress", code=2).stderr
    assert "8 samples and 3 targets, and the models of 8 and 2" in said


def test_probabilities_before_the_fit(invoke, stores, monkeypatch):
    monkeypatch.setattr("pntk.cli.surrogate.KernelSurrogate", None)  # would fail otherwise
    monkeypatch.setattr("pntk.report.surrogates.KernelSurrogate", None)
    for values, message in (
        (np.full((9, 3), 0.5), "sum to 1.5 in row 0"),
        (np.full((9, 3), np.nan), "hold nan in row 0"),
        (np.full((9, 2), 0.5), "2 columns|shape"),
        (np.full((9, 3), "a"), "are <U1; expected probabilities"),
        (np.full((9, 3), 1j), "are complex128; expected probabilities"),
    ):
        np.save("probs.npy", values)
        for command in (
            ("surrogate", "train.h5", "test.h5"),
            ("report", "train.h5", "--queries", "test.h5", "--out", "page.html"),
        ):
            said = invoke(*command, "--probs", "probs.npy", code=2).stderr
            assert any(part in said for part in message.split("|")), said
    Path("probs.npy").write_bytes(b"PK\x03\x04 no zip")
    said = invoke("surrogate", "train.h5", "test.h5", "--probs", "probs.npy", code=2).stderr
    assert "is no array of NumPy" in said


def test_options_of_models_with_stores(refused, stores):
    said = refused("similarity", "train.h5", "train.h5", "--size", 3, "--data", "bad:digits")
    assert "--data, --size: for models only" in said


def test_no_traceback_in_a_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pntk", "nads", "bad:one", "--shape", "3,5,6"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
