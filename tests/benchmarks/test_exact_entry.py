"""What the exact entries compare, without peers, and that a wrong kernel is refused."""

import json
import sys

import pytest
import torch

pytest.importorskip("benchmarks", reason="not on the path; run: python -m pytest in the checkout")
pytest.importorskip("psutil", reason="needed to know how much memory a peer may take")

from benchmarks import exact, exact_peers
from benchmarks.registry import CheckFailed, Options, Unavailable, run
from benchmarks.sketches import relative_error
from pntk.models import MLP

QUICK = Options(torch.device("cpu"), repeats=1, quick=True)


@pytest.fixture(autouse=True)
def no_peers(monkeypatch):
    monkeypatch.delenv(exact_peers.TORCHNTK, raising=False)
    monkeypatch.delenv(exact_peers.JAX_PYTHON, raising=False)


def problem(n=5, outputs=3):
    torch.manual_seed(0)
    model = MLP(6, [4], outputs).eval()
    return exact_peers.Problem("tiny", model, torch.randn(n, 6), outputs, "dense relu dense")


def test_reference_of_a_linear_model():
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    found = exact_peers.reference(exact_peers.Problem("linear", MLP(6, [], 3), x, 3))
    expected = 3 * (x.double() @ x.double().T + 1)  # weights and bias, for each output
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("held", [1, 2**20])
def test_jacobian_contraction_at_any_number_of_outputs_at_once(held, monkeypatch):
    monkeypatch.setattr(exact_peers, "JACOBIAN_BYTES", held)
    tiny = problem()
    found = exact_peers.jacobian_contraction(tiny)
    assert relative_error(found, exact_peers.reference(tiny)) < 1e-5


@pytest.mark.parametrize("name", exact.KINDS)
def test_models_take_the_images_and_have_the_layers_they_name(name):
    loaded = exact.load(name, 2)
    with torch.no_grad():
        assert loaded.model(loaded.images).shape == (2, exact.OUTPUTS)
    words = loaded.layers.split()
    layers = [m for m in loaded.model.modules() if any(True for _ in m.parameters(recurse=False))]
    kinds = {"Linear": "dense", "Conv2d": "conv"}
    assert [kinds[type(m).__name__] for m in layers] == [
        word.rstrip("0123456789") for word in words if word.startswith(("conv", "dense"))
    ]


def test_missing_peers_are_said():
    with pytest.raises(Unavailable, match=r"PNTK_TORCHNTK is not set; expected a checkout"):
        exact_peers.TorchNTK(problem())


def test_a_wrong_folder_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv(exact_peers.TORCHNTK, str(tmp_path))
    with pytest.raises(Unavailable, match="PNTK_TORCHNTK is '"):
        exact_peers.TorchNTK(problem())


def test_an_interpreter_that_is_not_there_is_said(monkeypatch, tmp_path):
    with pytest.raises(Unavailable, match="PNTK_JAX_PYTHON is not set"):
        exact_peers.JaxPeer(problem(), tmp_path)
    monkeypatch.setenv(exact_peers.JAX_PYTHON, str(tmp_path / "none"))
    with pytest.raises(Unavailable, match="cannot be run"):
        exact_peers.JaxPeer(problem(), tmp_path)


def test_an_interpreter_without_jax_says_why(monkeypatch, tmp_path):
    script = tmp_path / "peer.py"
    script.write_text("raise ImportError('no jax here')\n")
    monkeypatch.setattr(exact_peers, "_JAX_SCRIPT", script)
    monkeypatch.setenv(exact_peers.JAX_PYTHON, sys.executable)
    with pytest.raises(Unavailable, match="ended: ImportError: no jax here"):
        exact_peers.JaxPeer(problem(), tmp_path)


def test_the_fastest_trial_of_each_implementation_is_described():
    tried = [
        {"name": "A", "block": 16, "seconds": 2.0},
        {"name": "A", "block": 64, "seconds": 1.0},
        {"name": "B", "block": 16, "error": "out of memory"},
    ]
    found = {"tried": tried, "versions": ["1", "2"], "name": "A", "block": 64}
    text = exact_peers._describe("net", found)
    assert "neural-tangents 2 with JAX 1 ran A in blocks of 64" in text
    assert "A 1 s in blocks of 64; B out of memory" in text


def test_a_row_without_peers(monkeypatch):
    monkeypatch.setattr(exact, "KINDS", {"LeNet": exact.KINDS["LeNet"]})
    monkeypatch.setattr(exact, "QUICK_SAMPLES", 4)
    monkeypatch.setattr(exact, "ours", exact_peers.jacobian_contraction)
    monkeypatch.setattr(exact, "apart", lambda *_: {"seconds": 1.0, "peak": 2.0**21})
    found = run(exact.Exact(), QUICK)
    assert not found.failures
    assert set(found.rows[0].ratios) == {
        f"{who}, {what}" for who in (exact.ONCE, exact.FUNC) for what in ("time", "memory")
    }
    assert found.rows[0].values["pntk [MiB]"] == 2
    assert any("TorchNTK was left out: PNTK_TORCHNTK is not set" in note for note in found.notes)
    assert any("neural-tangents was left out: PNTK_JAX_PYTHON" in note for note in found.notes)


@pytest.mark.parametrize("entry", [exact.Exact, exact.ExactCost])
def test_a_wrong_kernel_is_refused(entry, monkeypatch):
    def wrong(problem):
        return exact_peers.jacobian_contraction(problem) * 1.001

    monkeypatch.setattr(exact, "ours", wrong)
    with pytest.raises(CheckFailed, match=r"pntk(, first call)? against float64 autograd"):
        entry().check(QUICK)


def test_costs_are_taken_in_a_process_of_their_own(capfd, monkeypatch):
    arguments = ["exact", exact.FUNC, "LeNet", "4", "1", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", arguments)
    exact.main()
    found = json.loads(capfd.readouterr().out)
    assert found["seconds"] > 0 and found["peak"] >= 0


def test_a_size_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(exact, "COST_SECONDS", 0.01)
    with pytest.raises(Unavailable, match=r"it took more than 0\.01 s"):
        exact.apart(exact.FUNC, "LeNet", 2)
