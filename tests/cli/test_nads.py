import json
import signal
import time

import numpy as np
import pytest
import torch

from pntk.cli.nads import parse_shape
from pntk.nads.compare import compare
from pntk.nads.gradient_covariance import GradientCovariance
from pntk.nads.nads import NADs
from pntk.nads.networks import LogReg

FEW = ("nads", "LogReg", "--num-samples", 30, "--shape", "1,4,4", "--no-progress")

NETS = """
import time

from torch import nn

one = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))


def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))


def two():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def number():
    return 3


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 1)

    def forward(self, x):
        time.sleep(0.15)  # 64 networks at a time
        return self.linear(x.flatten(1))
"""


@pytest.fixture
def nets(toy):
    (toy / "nets.py").write_text(NETS)
    yield toy
    __import__("sys").modules.pop("nets", None)


@pytest.fixture
def expected():
    point = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(2))
    params = {"num_channels": 1, "image_size": 4}
    return GradientCovariance(point, LogReg, params, seed=2).nads(30, progress=False)


def test_json_is_what_python_gives(invoke, toy, expected):
    (found,) = json.loads(invoke(*FEW, "--seed", 2, "--json").stdout)["networks"]
    np.testing.assert_allclose(found["singular_values"], expected.singular_values, rtol=1e-5)
    assert found["isotropy"]["gini"] == pytest.approx(expected.isotropy().gini, rel=1e-5)
    assert (found["network"], found["shape"], found["centered"]) == ("LogReg", [1, 4, 4], True)
    assert (found["directions"], found["comparison"], found["file"]) == (16, None, None)


def test_options_arrive(invoke, toy):
    options = ("--jacobian", "finite_difference", "--scale", 7, "--uncentered")
    shown = invoke(*FEW, *options).stdout
    assert "30, finite_difference, step 7, not centred, seed 0" in shown
    assert "participation ratio" in shown and "share of the first" in shown


def test_file_and_comparison(invoke, refused, toy, expected):
    other = json.loads(invoke(*FEW, "--out", "other.h5", "--json").stdout)["networks"][0]
    assert other["file"] == "other.h5"
    assert [file.name for file in toy.glob("*.h5")] == ["other.h5"]
    shown = invoke(*FEW, "--seed", 2, "--published", "other.h5", "--out", "n.h5").stdout
    theirs = NADs.load("other.h5")
    wanted = compare(expected, theirs)
    assert f"10    {wanted.overlap[10]:.3f}" in shown and "overlap with published" in shown
    assert f"Pearson {wanted.pearson:.4f}" in shown
    torch.testing.assert_close(NADs.load("n.h5").directions, expected.directions)
    # published arrays of a folder, and of a file
    np.save("LogReg_NADs.npy", theirs.directions.flatten(1))
    np.save("LogReg_eigenvals.npy", theirs.singular_values)
    for path in (".", "LogReg_NADs.npy"):
        found = json.loads(invoke(*FEW, "--seed", 2, "--published", path, "--json").stdout)
        comparison = found["networks"][0]["comparison"]
        assert comparison["overlap"]["10"] == pytest.approx(wanted.overlap[10])
    invoke(*FEW, "--out", "kept.h5", "--keep-gradients")
    assert (toy / "kept.gradients.h5").exists()
    shown = refused(*FEW, "--seed", 3, "--out", "n.h5")
    assert "n.h5 holds NADs with eval_point = " in shown and "seed = 2" in shown
    wide = (*FEW[:4], "--shape", "1,4,5", "--published", "other.h5")
    assert "directions of shape [1, 4, 4] and --shape is [1, 4, 5]" in refused(*wide)


def test_all(invoke, refused, toy, monkeypatch):
    monkeypatch.setattr("pntk.cli.nads.NETWORKS", {"LogReg": LogReg, "Again": LogReg})
    command = ("nads", "all", *FEW[2:])
    found = json.loads(invoke(*command, "--out", "sets", "--json").stdout)["networks"]
    assert [one["file"] for one in found] == ["sets/LogReg.h5", "sets/Again.h5"]
    before = (toy / "sets" / "Again.h5").stat().st_mtime_ns
    assert invoke(*command, "--out", "sets").stdout.count("participation ratio") == 2
    assert (toy / "sets" / "Again.h5").stat().st_mtime_ns == before
    assert "sets/LogReg.h5 is a file; expected a folder" in refused(
        *command, "--out", "sets/LogReg.h5"
    )
    assert "is a file; expected a folder for all" in refused(
        *command, "--published", "sets/LogReg.h5"
    )
    assert "--published sets has no LogReg_NADs.npy" in refused(*command, "--published", "sets")
    assert "the folder no does not exist" in refused(*command, "--out", "no/sets")


def test_own_networks(invoke, refused, nets):
    (found,) = json.loads(invoke("nads", "nets:wide", *FEW[2:], "--json").stdout)["networks"]
    assert found["network"] == "wide" and found["directions"] == 16
    assert "is one network; expected a function" in refused("nads", "nets:one", *FEW[2:])
    assert "returned a int; expected a torch.nn.Module" in refused("nads", "nets:number", *FEW[2:])
    assert "expected one number an input" in refused("nads", "nets:two", *FEW[2:], code=1)
    assert "has no attribute 'absent'" in refused("nads", "nets:absent", *FEW[2:])


def test_report(invoke, refused, toy):
    pytest.importorskip("matplotlib", reason="reports need matplotlib")
    pytest.importorskip("jinja2", reason="reports need jinja2")
    invoke(*FEW, "--out", "other.h5")
    options = ("--seed", 1, "--published", "other.h5", "--report", "page.html")
    assert "report: page.html" in invoke(*FEW, *options).stdout
    page = (toy / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    for words in ("LogReg: directions", "Gini coefficient", "by chance", "effective rank, LogReg"):
        assert words in page
    assert "is an HDF5 file" in refused(*FEW, "--report", "other.h5")


def test_stop_and_go_on(invoke, start, nets):
    command = ("nads", "nets:Slow", "--num-samples", 384, "--shape", "1,4,4", "--out", "n.h5")
    process = start(*command)
    while not (nets / "n.gradients.h5").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert "gradients so far are kept beside n.h5; go on with: python -m pntk nads" in said
    assert not (nets / "n.h5").exists()
    result = invoke(*command)
    assert "384/384" in result.stderr
    assert (nets / "n.h5").exists() and not (nets / "n.gradients.h5").exists()


def test_errors(refused, toy):
    assert "MODEL is 'AlexNet'; expected one of LogReg, LeNet, VGG11" in refused("nads", "AlexNet")
    assert "ends in '.npy'; expected .h5, .hdf5" in refused(*FEW, "--out", "n.npy")
    assert "--keep-gradients without --out" in refused(*FEW, "--keep-gradients")
    assert "LeNet needs at least 16 pixels" in refused("nads", "LeNet", *FEW[2:])
    for text in ("1,4", "1,4,x", "1,0,4"):
        with pytest.raises(ValueError, match="expected channels, height and width"):
            parse_shape(text)
