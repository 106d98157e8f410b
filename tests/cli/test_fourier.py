import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from pntk.representation.fourier import fourier_map
from pntk.representation.fourier_file import FourierMap

WORK = ["fourier", "--model", "toy:net", "--data", "toy:digits", "--norm", 1.5, "--no-progress"]


def test_json_is_what_python_gives(invoke, toy):
    import toy as module

    pictures = ["--plot", "map.png", "--report", "r.html"]
    found = json.loads(invoke(*WORK, "--out", "map.npz", *pictures, "--json").stdout)
    expected = fourier_map(module.net().eval(), module.digits(), 1.5, progress=False)
    assert np.allclose(found["values"], expected.values)
    assert np.array_equal(FourierMap.load("map.npz").values, expected.values)
    assert found["map"] == [3, 4] and found["clean"] == expected.clean
    r, c = found["highest at"]
    assert expected.values[r + 1, c + 2] == found["highest"] == expected.values.max()
    assert (toy / "map.png").exists() and "Fourier map" in (toy / "r.html").read_text()


def test_readable_with_all_options(invoke, toy):
    options = ["--criterion", "loss", "--size", 3, "--sign", "random", "--mean", "0", "--std", "1"]
    shown = invoke(*WORK, "--out", "map.npz", *options).stdout
    assert "loss" in shown and "map: map.npz" in shown and "clean" in shown
    assert FourierMap.load("map.npz").values.shape == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "map.h5"], "ends in '.h5'; a Fourier map is kept in an .npz file"),
        (["--out", "map.npz", "--mean", "a,b"], "--mean is 'a,b'; expected a number"),
        (["--out", "map.npz", "--mean", "0.5"], "one of mean and std was given"),
        (["--out", "map.npz", "--size", 4], "size is 4; expected one or two numbers from 1 to 3"),
    ],
)
def test_errors(refused, toy, options, message):
    assert message in refused(*WORK, *options)
