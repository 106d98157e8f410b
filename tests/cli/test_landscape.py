import json

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from pntk.cli.landscape import _natural, _ranges
from pntk.representation.directions import random_direction
from pntk.representation.landscape import loss_landscape
from pntk.representation.landscape_file import Landscape

WORK = ["landscape", "--model", "toy:net", "--data", "toy:digits", "--points", 3, "--no-progress"]


@pytest.fixture
def run_of_four(toy):
    """epoch2.pt, epoch8.pt, epoch9.pt and epoch10.pt."""
    import toy as module

    for number in (2, 8, 9, 10):
        network = module.net()
        with torch.no_grad():
            torch.manual_seed(number)
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
        torch.save(network.state_dict(), f"epoch{number}.pt")


def test_json_is_what_python_gives(invoke, toy):
    import toy as module

    pictures = ["--plot", "c.png", "--surface", "s.png", "--report", "r.html", "--accuracy"]
    shown = invoke(*WORK, "--out", "land.npz", *pictures, "--json").stdout
    found = json.loads(shown)
    network = module.net().eval()
    directions = random_direction(network, 0), random_direction(network, 1)
    expected = loss_landscape(network, module.digits(), *directions, points=3, progress=False)
    assert np.allclose(Landscape.load("land.npz").losses, expected.losses, rtol=1e-6)
    assert found["lowest"] == pytest.approx(float(expected.losses.min()))
    assert found["points"] == [3, 3] and found["not finite"] == 0
    assert (toy / "c.png").exists() and (toy / "s.png").exists()
    page = (toy / "r.html").read_text()
    assert "Loss landscape" in page and "Accuracy" in page and page.count("data:image/png") == 3


def test_lines(invoke, run_of_four):
    shown = invoke(*WORK, "--checkpoint", "epoch8.pt", "--toward", "epoch9.pt", "--range", 0, 1,
                   "--out", "line.npz").stdout  # fmt: skip
    assert "lowest at" in shown and "landscape: line.npz" in shown
    there = Landscape.load("line.npz")
    assert there.y is None and there.x.tolist() == [0, 0.5, 1]
    invoke(*WORK, "--checkpoint", "epoch9.pt", "--line", "--out", "other.npz")
    assert Landscape.load("other.npz").losses[1] == pytest.approx(there.losses[-1], rel=1e-6)


def test_trajectory(invoke, run_of_four):
    result = invoke(*WORK, "--trajectory", "epoch*.pt", "--out", "run.npz", "--plot", "run.png")
    assert "of the run's squared distances" in result.stderr
    found = Landscape.load("run.npz")
    assert found.trajectory.shape == (4, 2) and not found.trajectory[-1].any()
    names = ["a/epoch10.pt", "a/epoch2.pt", "a/epoch.pt", "a/best.pt"]
    assert sorted(names, key=_natural) == ["a/best.pt", "a/epoch2.pt", "a/epoch10.pt", "a/epoch.pt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--toward", "epoch2.pt", "--trajectory", "*.pt"], "--toward beside --trajectory"),
        (["--toward", "epoch2.pt", "--line"], "--line is of a random direction"),
        (["--checkpoint", "epoch2.pt", "--trajectory", "*.pt"], "whose last checkpoint is the"),
        (["--trajectory", "epoch2*"], "matches 1 files; expected at least 3"),
        (["--line", "--surface", "s.png"], "--surface of a line; use --plot"),
        (["--range", 1, 0], "x_range is (1.0, 0.0)"),
    ],
)
def test_errors(refused, run_of_four, options, message):
    assert message in refused(*WORK, "--out", "land.npz", *options)
    assert "ends in '.h5'" in refused(*WORK, "--out", "land.h5")


def test_range_of_a_trajectory():
    path = np.array([[5.0, 1.0], [2.0, -1.0], [0.0, 0.0]])
    assert _ranges(None, path, True) == ((-1.0, 6.0), (-2.0, 2.0))
    assert _ranges((0.0, 1.0), path, True) == ((0.0, 1.0), (0.0, 1.0))
    assert _ranges(None, None, False) == ((-1.0, 1.0), None)
