import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("scipy", reason="Kendall's tau is SciPy's")

from pntk import Featurizer, KernelSurrogate, empirical_ntk
from pntk.errors import ConfigError, DataError
from pntk.models import MLP
from pntk.surrogate.comparison import KERNELS, compare_kernels


@pytest.fixture
def problem():
    """A network, and examples of which it gets most right."""
    torch.manual_seed(0)
    model = MLP(6, [8], 3).eval()
    x = torch.randn(90, 6)
    with torch.no_grad():
        logits = model(x)
    y = (logits - logits.mean(0) + 0.1 * torch.randn(90, 3)).argmax(1)
    return model, (x[:60], y[:60]), (x[60:], y[60:])


def compare(problem, *arguments, **options):
    options = {"alpha": 1e-2, "bootstrap": 0, "progress": False, **options}
    return compare_kernels(*problem, *arguments, **options)


def test_projected_line_is_what_the_pieces_give(problem):
    model, (x, y), (xt, yt) = problem
    (line,) = compare(problem, ["pntk"], [64], seed=3).lines
    featurizer = Featurizer(model, "pntk", proj_dim=64, seed=3)
    surrogate = KernelSurrogate("glm", alpha=1e-2, seed=3).fit(featurizer(x), y)
    probs = model(xt).detach().double().softmax(1)
    expected = surrogate.evaluate(featurizer(xt), probs, yt, bootstrap=0)
    assert line.report == expected and (line.kernel, line.proj_dim) == ("pntk", 64)


@pytest.mark.parametrize("normalize", [True, False])
def test_exact_line_is_what_the_pieces_give(problem, normalize):
    model, (x, y), (xt, yt) = problem
    (line,) = compare(problem, ["exact trace"], normalize=normalize).lines
    kernel = empirical_ntk(model, x).double()
    cross = empirical_ntk(model, xt, x).double()
    if normalize:
        own = empirical_ntk(model, xt).diagonal().double()
        cross /= (own[:, None] * kernel.diagonal()).sqrt()
        kernel /= torch.outer(kernel.diagonal(), kernel.diagonal()).sqrt()
    surrogate = KernelSurrogate("glm", alpha=1e-2, kernel="precomputed", normalize=normalize)
    probs = model(xt).detach().double().softmax(1)
    expected = surrogate.fit(kernel, y).evaluate(cross, probs, yt, bootstrap=0)
    assert line.report.kendall_tau == pytest.approx(expected.kendall_tau, abs=0.02)
    assert line.report.r2 == pytest.approx(expected.r2, abs=1e-3)


def test_every_kernel_and_width_has_a_line(problem):
    found = compare(problem, KERNELS, (64, 256), bootstrap=5)
    widths = [(line.kernel, line.proj_dim) for line in found.lines]
    projected = [(name, k) for name in ("trace", "pntk", "loss") for k in (64, 256)]
    assert widths == projected + [(name, None) for name in KERNELS[3:]]
    table = str(found).splitlines()
    assert table[0].split()[:3] == ["kernel", "k", "alpha"] and len(table) == 11
    assert " to " in table[1]
    # gradients of the loss know the labels, and so the surrogate
    assert max(line.report.surrogate_accuracy for line in found.lines[4:6]) == 1


def test_data_sets_do_as_tensors_do(problem):
    model, train, test = problem
    kernels = ["trace", "exact pntk", "CK"]
    expected = compare(problem, kernels, [64]).lines
    sets = model, TensorDataset(*train), TensorDataset(*test)
    assert compare(sets, kernels, [64]).lines == expected


def test_comparison_plot(problem):
    plots = pytest.importorskip("pntk.report.comparison_plot", reason="needs matplotlib")
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    found = compare(problem, ["trace", "CK"], (64, 256), bootstrap=5)
    pictures = {plots.comparison_plot(found, name) for name in ("kendall_tau", "r2")}
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and len(pictures) == 2
    assert plots.comparison_plot(compare(problem, ["CK"])).startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="measure is 'tau'; expected one of kendall_tau"):
        plots.comparison_plot(found, "tau")


def test_refusals(problem):
    model, train, test = problem
    with pytest.raises(ConfigError, match=r"expected some of trace, pntk, loss"):
        compare(problem, ["NTK"])
    with pytest.raises(ConfigError, match="no proj_dims"):
        compare(problem, ["trace"], [])
    with pytest.raises(ConfigError, match="48"):
        compare(problem, ["trace"], [48])
    with pytest.raises(DataError, match="test examples have no labels"):
        compare((model, train, test[0]))
    with pytest.raises(DataError, match="no train example of class 2"):
        kept = train[1] < 2
        compare((model, (train[0][kept], train[1][kept]), test))
    loaders = [DataLoader(TensorDataset(*part), batch_size=8) for part in (train, test)]
    with pytest.raises(ConfigError, match="expect two tuples of tensors or two data sets"):
        compare((model, *loaders), ["exact trace"])
    assert np.isfinite(compare((model, *loaders), ["CK"]).lines[0].report.tad)
