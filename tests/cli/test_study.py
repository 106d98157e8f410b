import json

import pytest
import torch

from pntk.cli.study import parse_widths
from pntk.ntk.residuals import residual_study

STUDY = ("study", "--model", "toy:net", "--data", "toy:digits", "--proj-dims", "64,16")
FEW = (*STUDY, "--seeds", 2, "--no-progress")


def test_json_is_that_of_the_study(invoke, toy):
    import toy as module

    command = (*FEW, "--kind", "pntk", "--projection", "normal", "--samples", 15, "--json")
    found = json.loads(invoke(*command).stdout)
    expected = residual_study(
        module.net().eval(),
        module.digits(),
        kind="pntk",
        projection="normal",
        proj_dims=(16, 64),
        seeds=2,
        samples=15,
    )
    assert found == {**expected.to_dict(), "plot": None}
    assert [level["proj_dim"] for level in found["levels"]] == [16, 64]
    assert found["samples"] == 15


def test_table_and_progress(invoke, toy):
    result = invoke(*STUDY, "--seeds", 3)
    assert "4/6" in result.stderr or "6/6" in result.stderr
    shown = result.stdout
    assert "trace, hadamard: 131 parameters, 20 samples (190 pairs), 3 seeds" in shown
    assert "KS mixture" in shown and "mean |d| ~ k^-b with b = " in shown
    assert not invoke(*FEW).stderr


def test_weights_and_parameters(invoke, toy):
    import toy as module

    model = module.net().eval()
    with torch.no_grad():
        model[1].weight.mul_(3)
    torch.save(model.state_dict(), "net.pt")
    options = ("--checkpoint", "net.pt", "--params", "1.*", "--json")
    found = json.loads(invoke(*FEW, *options).stdout)
    expected = residual_study(model, module.digits(), params="1.*", proj_dims=(16, 64), seeds=2)
    assert found["params"] == 104
    assert found["cosines"] == expected.to_dict()["cosines"]


def test_plot(invoke, refused, stores):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert "plot: s.png" in invoke(*FEW, "--plot", "s.png").stdout
    assert (stores / "s.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(invoke(*FEW, "--plot", "s.png", "--json").stdout)["plot"] == "s.png"
    assert "train.h5 is an HDF5 file" in refused(*FEW, "--plot", "train.h5")


def test_errors(refused, invoke, toy):
    shown = refused(*STUDY[:5], "--proj-dims", "256;512")
    assert "--proj-dims is '256;512'; expected integers with commas" in shown
    absent = ("study", "--model", "toy:absent", "--data", "toy:digits")
    # what can be known is refused before the model is made
    assert "hadamard needs a power of two" in refused(*absent, "--proj-dims", "100")
    assert "expected different widths" in refused(*absent, "--proj-dims", "64,64")
    assert "seeds is 1; expected an integer of at least 2" in refused(*absent, "--seeds", 1)
    assert "samples is 3; expected an integer of at least 8" in refused(*absent, "--samples", 3)
    assert "has no attribute 'absent'" in refused(*absent)
    assert "'full' is not one of trace, pntk" in invoke(*FEW, "--kind", "full", code=2).stderr
    shown = invoke(*FEW, "--projection", "identity", code=2).stderr
    assert "'identity' is not one of hadamard" in shown


def test_widths():
    assert parse_widths("256, 1024") == [256, 1024]
