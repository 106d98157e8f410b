"""What torch.compile made of a model, a part of it, or of the code around it changes no row."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from pntk import FeatureStore, Featurizer
from pntk.compiled import as_written, outside_graphs

pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler's own

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)
BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler]),
]
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two blocks, the second reached through a method."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.second = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))

    def finish(self, h):
        return self.second(h)

    def forward(self, x):
        return self.finish(self.first(x))


def whole(net, backend):
    return torch.compile(net, backend=backend)


def in_place(net, backend):
    net.compile(backend=backend)
    return net


def a_block(net, backend):
    net.first = torch.compile(net.first, backend=backend)
    return net


def a_layer_in_place(net, backend):
    net.second[1].compile(backend=backend)
    return net


def a_method(net, backend):
    net.finish = torch.compile(net.finish, backend=backend)
    return net


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", [whole, in_place, a_block, a_layer_in_place, a_method])
@pytest.mark.parametrize("fallback", [(), "second.*"])
@pytest.mark.parametrize("warm", [False, True])
def test_compiled_models(way, backend, fallback, warm):
    options = {"output": "trace", "proj_dim": 64, "fallback": fallback}
    expected = Featurizer(Net(), **options)(X)
    model = way(Net(), backend)
    if warm:
        model(X)
    featurizer = Featurizer(model, **options)
    assert torch.equal(featurizer(X), expected)
    assert [row["rule"] for row in featurizer.coverage()] == [
        "torch.func" if fallback and row["name"].startswith("second") else row["rule"]
        for row in Featurizer(Net(), proj_dim=64).coverage()
    ]
    assert torch.allclose(model(X), Net()(X), atol=1e-5)  # and it still works, compiled


@pytest.mark.parametrize("backend", BACKENDS)
def test_inside_a_compiled_function(backend):
    featurizer = Featurizer(Net(), proj_dim=64)
    expected = Featurizer(Net(), proj_dim=64)(X)
    rows = torch.compile(lambda x: 2 * featurizer(x + 0), backend=backend)
    for _ in range(2):
        assert torch.equal(rows(X), 2 * expected)
    checked = torch.compile(lambda x: featurizer.check(x), backend=backend)
    checked(X)


def test_featurize_from_compiled_code(tmp_path):
    featurizer = Featurizer(torch.compile(Net(), backend="eager"), proj_dim=64)
    make = torch.compile(
        lambda x: featurizer.featurize(x, tmp_path / "rows.h5", progress=False), backend="eager"
    )
    make(X).close()
    with FeatureStore(tmp_path / "rows.h5") as store:
        assert torch.equal(store.torch(), Featurizer(Net(), proj_dim=64)(X))


def test_compiled_functions_run_as_written_in_the_context_alone():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with as_written():
        assert torch.equal(double(X), 2 * X)
    assert not compiled
    assert torch.equal(double(X), 2 * X)
    assert len(compiled) == 1


def test_functions_outside_graphs_keep_their_name_and_arguments():
    @outside_graphs
    def scaled(x, *, by=1):
        """Scale."""
        return by * x

    assert scaled.__name__ == "scaled" and scaled.__doc__ == "Scale."
    assert torch.equal(scaled(X, by=3), 3 * X)


def test_the_compiler_is_not_imported_for_it():
    code = (
        "import sys, torch, pntk.compiled as c; before = 'torch._dynamo' in sys.modules\n"
        "with c.as_written(): assert c.outside_graphs(lambda: 3)() == 3\n"
        "assert before or 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_compiled_layer_among_others():
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)]
    x = torch.randn(3, 6)
    expected = Featurizer(nn.Sequential(*layers), proj_dim=64)(x)
    compiled = nn.Sequential(torch.compile(layers[0], backend="eager"), *layers[1:])
    assert torch.equal(Featurizer(compiled, proj_dim=64)(x), expected)
