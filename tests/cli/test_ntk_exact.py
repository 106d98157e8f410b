import json

import h5py
import numpy as np
import pytest
import torch

from pntk import empirical_ntk
from pntk.cli import ntk as cli
from pntk.cli.ntk import summarize
from pntk.ntk.exact import EmpiricalNTK
from pntk.ntk.kernel_file import KernelWriter

EXACT = ("ntk", "--exact", "--model", "toy:net", "--data", "toy:digits", "--no-progress")


@pytest.fixture
def network(toy):
    import toy as module

    return module.net().eval(), module.digits(), module.test_digits()


@pytest.mark.parametrize("options", [(), ("--kind", "pntk"), ("--precision", "fp64")])
def test_written_kernel_is_the_exact_one(invoke, network, options):
    model, x, _ = network
    found = json.loads(invoke(*EXACT, *options, "--out", "k.h5", "--json").stdout)
    kind, precision = dict([options]).get("--kind", "trace") if options else "trace", "fp64"
    expected = empirical_ntk(model, x, kind=kind, precision=precision).numpy()
    with h5py.File("k.h5") as file:
        kernel = file["ntk"][:]
    np.testing.assert_allclose(kernel, expected, rtol=1e-5)
    assert kernel.dtype == (np.float64 if "fp64" in options else np.float32)
    assert found["kind"] == kind and found["exact"] is True
    assert found["shape"] == [20, 20] and "entry" not in found
    assert found["trace"] == pytest.approx(np.trace(expected), rel=1e-6)
    assert found["mean"] == pytest.approx(expected.mean(), rel=1e-6)


def test_between_two_sets_of_samples(invoke, network):
    model, x, x2 = network
    found = json.loads(invoke(*EXACT, "--other-data", "toy:test_digits", "--json").stdout)
    expected = empirical_ntk(model, x, x2)
    assert found["shape"] == [20, 9] and "trace" not in found
    assert found["max"] == pytest.approx(float(expected.max()))


@pytest.mark.parametrize("out", [(), ("--out", "k.h5")])
@pytest.mark.parametrize(("kind", "entry"), [("diagonal", [3]), ("full", [3, 3])])
def test_summaries_of_entries(invoke, network, kind, entry, out):
    model, x, _ = network
    found = json.loads(invoke(*EXACT, "--kind", kind, *out, "--json").stdout)
    trace = float(empirical_ntk(model, x).trace())  # the same sum of squared norms, in any kind
    assert (found["shape"], found["entry"]) == ([20, 20], entry)
    assert found["trace"] == pytest.approx(trace)
    expected = empirical_ntk(model, x, kind=kind)
    assert found["mean"] == pytest.approx(float(expected.mean()), rel=1e-5)
    shown = invoke(*EXACT, "--kind", kind).stdout
    assert f"20 x 20, each of {' x '.join(map(str, entry))} numbers" in shown
    assert f"exact, {kind}" in shown and "summed over what a pair of samples has" in shown


@pytest.mark.parametrize("out", [(), ("--out", "k.h5")])
@pytest.mark.parametrize("kind", ["trace", "full"])
def test_components_add_up(invoke, network, kind, out):
    model, x, _ = network
    command = (*EXACT, "--components", "module", "--kind", kind)
    found = json.loads(invoke(*command, *out, "--json").stdout)
    parts = empirical_ntk(model, x, kind=kind, components="module")
    assert list(found["components"]) == ["1", "3"]
    for name, kernel in parts.items():
        own = kernel if kind == "trace" else torch.einsum("nmcc->nm", kernel)
        assert found["components"][name]["trace"] == pytest.approx(float(own.trace()))
        assert found["components"][name]["mean"] == pytest.approx(float(kernel.mean()), rel=1e-5)
    total = sum(part["trace"] for part in found["components"].values())
    assert total == pytest.approx(found["trace"])
    shown = invoke(*command).stdout
    assert "component" in shown and "share" in shown
    cross = invoke(*command, "--other-data", "toy:test_digits").stdout
    assert "component" in cross and "share" not in cross


@pytest.mark.parametrize("size", [1, 3000, 10**9])
def test_entries_are_summarized_block_by_block(monkeypatch, size):
    monkeypatch.setattr("pntk.cli.ntk.BLOCK_BYTES", size)
    kernel = np.random.default_rng(0).normal(size=(11, 11, 2, 3, 3))
    found = summarize(
        kernel.shape, lambda i, j: kernel[i:j], symmetric=True, components=("a", "b"), paired=True
    )
    assert found["trace"] == pytest.approx(np.einsum("nnpcc->", kernel))
    assert found["components"]["b"]["trace"] == pytest.approx(np.einsum("nncc->", kernel[:, :, 1]))
    assert found["components"]["a"]["mean"] == pytest.approx(kernel[:, :, 0].mean())


def test_checkpoint_params_and_method(invoke, network):
    model, x, _ = network
    with torch.no_grad():
        model[3].weight.mul_(2)
    torch.save(model.state_dict(), "net.pt")
    options = ("--checkpoint", "net.pt", "--params", "1.*", "--method", "func")
    found = json.loads(invoke(*EXACT, *options, "--json").stdout)
    expected = empirical_ntk(model, x, params="1.*")
    assert found["trace"] == pytest.approx(float(expected.trace()))


def test_wrong_mixes_are_refused(refused, invoke, stores):
    both = ("--model", "toy:net", "--data", "toy:digits")
    assert "train.h5 beside --exact; an exact kernel is made from" in refused(
        "ntk", "train.h5", "--exact", *both
    )
    assert "--model, --kind without --exact; add --exact" in refused(
        "ntk", "train.h5", "--model", "toy:net", "--kind", "full"
    )
    assert "--data, --params without --exact" in refused(
        "ntk", "--data", "toy:digits", "--params", "1.*"
    )
    assert "--exact without --model and --data; expected" in refused("ntk", "--exact")
    assert "--exact without --data; expected" in refused("ntk", "--exact", *both[:2])
    assert "--exact without --model; expected" in refused("ntk", "--exact", *both[2:])
    assert "no STORE.h5; name a store, or give --exact" in refused("ntk")
    assert "--normalize beside --exact; the entries are" in refused(*EXACT, "--normalize")
    assert "--check beside --exact; that compares" in refused(*EXACT, "--check")
    assert "'trail' is not one of trace" in invoke(*EXACT, "--kind", "trail", code=2).stderr
    assert "--other-data: module 'toy'" in refused(*EXACT, "--other-data", "toy:absent")
    assert "memory_budget" in refused(*EXACT, "--memory-budget", "1kB")
    (stores / "k.h5").write_text("mine")
    assert "--out k.h5 exists" in refused(*EXACT, "--out", "k.h5")


def test_a_stopped_kernel_goes_on(invoke, toy, monkeypatch):
    write = KernelWriter.write

    def stop(self, i, j, *tile):
        if (i, j) == (1, 1):
            raise KeyboardInterrupt
        write(self, i, j, *tile)

    with monkeypatch.context() as patch:
        patch.setattr(EmpiricalNTK, "_tile", lambda *_: 8)
        patch.setattr(KernelWriter, "write", stop)
        shown = invoke(*EXACT, "--out", "k.h5", code=130).stderr
    assert "stopped: 3 of 6 tiles are in k.h5.partial; go on from there with: " in shown
    shown = invoke(*EXACT, "--kind", "pntk", "--out", "k.h5", code=1).stderr
    assert "is the beginning of another kernel" in shown
    result = invoke(*EXACT, "--out", "k.h5", "--json")
    assert "resuming: 3 of 6 tiles are in k.h5.partial" in result.stderr
    assert json.loads(result.stdout)["shape"] == [20, 20]


def test_stopped_before_the_first_tile(invoke, toy, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "exact_kernel", stop)
    shown = invoke(*EXACT, "--out", "k.h5", code=130).stderr
    assert "stopped: no tile was written; start again with: " in shown
