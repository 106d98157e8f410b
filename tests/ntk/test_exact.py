"""All ways to the exact kernel agree: by factors, by gradients, by torch.func, by a plain loop, and
by contracting Jacobians of torch.func."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pntk
from pntk import EmpiricalNTK, empirical_ntk
from pntk.errors import CheckError, ConfigError, DataError, ModelError, OutputError, PntkWarning
from pntk.models import GPT, MLP, LeNet, ResNet18, ViT
from pntk.ntk.columns import Axes
from pntk.ntk.contraction import Factors, Sizes, cost, shared_factor
from pntk.ntk.exact_sinks import transposed
from pntk.ntk.factors import Product
from pntk.ntk.kernel_file import KernelWriter, open_kernel
from pntk.ntk.reference import reference_ntk
from pntk.ntk.samples import content_of, samples_of
from pntk.projection.sketch import Columns

BOUND = 1e-10


class Tied(nn.Module):
    """A language model whose embedding is its last layer too, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = torch.tanh(self.middle(self.embedding(ids)))
        return self.head(torch.tanh(self.middle(x))).mean(1)


class LastToken(GPT):
    def forward(self, ids):
        return super().forward(ids)[:, -1]


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


MODELS = {
    "MLP": lambda: (MLP(6, (8, 8), 3), torch.randn(5, 6)),
    "CNN with batch norm": lambda: (cnn(), torch.randn(5, 2, 6, 6)),
    "LeNet": lambda: (LeNet(3, image_size=12), torch.randn(4, 1, 12, 12)),
    "ResNet18": lambda: (ResNet18(num_classes=2, width=4), torch.randn(3, 3, 16, 16)),
    "ViT": lambda: (ViT(8, 4, dim=8, depth=2, heads=2, num_classes=3), torch.randn(4, 3, 8, 8)),
    "transformer": lambda: (LastToken(9, 6, dim=8, depth=1, heads=2), torch.randint(0, 9, (4, 5))),
    "tied weights": lambda: (Tied(), torch.randint(0, 11, (4, 5))),
}
every_model = pytest.mark.parametrize("name", MODELS)


def built(name):
    torch.manual_seed(1)
    model, x = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.double().eval(), x.double() if x.is_floating_point() else x


def same(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= BOUND * float(expected.abs().max())


def full(model, x, x2=None):
    """The kernel of all pairs of outputs [n, m, c, c], by the loop."""
    return sum(reference_ntk(model, x, x2).values())


def traced(kernel):
    return kernel.diagonal(dim1=2, dim2=3).sum(-1)


def by_torch_func(model, x, x2=None):
    params = {name: p.detach() for name, p in model.named_parameters()}

    def jacobians(samples):
        def outputs(params, sample):
            return functional_call(model, params, (sample[None],))[0]

        with sdpa_kernel(SDPBackend.MATH):
            return vmap(jacrev(outputs), (None, 0))(params, samples)

    left = jacobians(x)
    right = left if x2 is None else jacobians(x2)
    return sum(
        torch.einsum("iap,jbp->ijab", left[n].flatten(2), right[n].flatten(2)) for n in params
    )


def quietly(work, *arguments, **options):
    with warnings.catch_warnings():  # of vmap, where it cannot go
        warnings.simplefilter("ignore", PntkWarning)
        return work(*arguments, **options)


@every_model
def test_all_ways_agree(name):
    model, x = built(name)
    expected = full(model, x)
    same(by_torch_func(model, x), expected)
    for method in ("auto", "factors", "gradients", "func"):
        same(quietly(empirical_ntk, model, x, kind="full", method=method), expected)
        same(quietly(empirical_ntk, model, x, method=method), traced(expected))


@every_model
def test_kinds(name):
    model, x = built(name)
    expected = full(model, x, x[:2])
    same(empirical_ntk(model, x, x[:2]), traced(expected))
    same(empirical_ntk(model, x, x[:2], "pntk"), expected.sum((2, 3)))
    same(empirical_ntk(model, x, x[:2], "diagonal"), expected.diagonal(dim1=2, dim2=3))
    same(empirical_ntk(model, x, x[:2], "full"), expected)


@every_model
@pytest.mark.parametrize("kind", ["trace", "full"])
def test_components_add_up(name, kind):
    model, x = built(name)
    expected = reference_ntk(model, x)
    shown = (lambda kernel: kernel) if kind == "full" else traced
    found = empirical_ntk(model, x, kind=kind, components="parameter")
    assert list(found) == [name for name, _ in model.named_parameters()]
    scale = float(sum(expected.values()).abs().max())
    for part, kernel in found.items():
        assert float((kernel - shown(expected[part])).abs().max()) <= BOUND * scale
    same(sum(found.values()), empirical_ntk(model, x, kind=kind))
    modules = empirical_ntk(model, x, kind=kind, components="module")
    same(sum(modules.values()), sum(found.values()))
    assert set(modules) == {name.rpartition(".")[0] or "(model)" for name in found}


@pytest.mark.parametrize("tile", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["trace", "diagonal", "full"])
@pytest.mark.parametrize("name", ["CNN with batch norm", "tied weights", "ViT"])
def test_tiles(name, kind, tile, monkeypatch):
    model, x = built(name)
    whole, rectangle = empirical_ntk(model, x, kind=kind), empirical_ntk(model, x, x[:3], kind)
    monkeypatch.setattr(EmpiricalNTK, "_tile", lambda *_: tile)
    found = empirical_ntk(model, x, kind=kind)
    same(found, whole)
    assert torch.equal(found, transposed(found, 1 if kind == "full" else 0))
    same(empirical_ntk(model, x, x[:3], kind), rectangle)


@pytest.mark.parametrize("method", ["factors", "gradients", "func"])
def test_axes_of_outputs(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Unflatten(1, (2, 3, 2))).double()
    x = torch.randn(5, 4).double()
    expected = full(model, x).reshape(5, 5, 2, 3, 2, 2, 3, 2)

    def ntk(kind, **options):
        return empirical_ntk(model, x, kind=kind, method=method, **options)

    same(ntk("full"), expected)
    same(ntk("trace"), torch.einsum("nmabcabc->nm", expected))
    same(ntk("pntk"), expected.sum((2, 3, 4, 5, 6, 7)))
    same(ntk("diagonal"), torch.einsum("nmabcabc->nmabc", expected))
    same(ntk("full", trace_axes=(-1,)), torch.einsum("nmabcdec->nmabde", expected))
    same(ntk("full", trace_axes=(1, 3)), torch.einsum("nmabcaec->nmbe", expected))
    same(ntk("diagonal", trace_axes=(2,)), torch.einsum("nmabcabc->nmac", expected))


def test_heads_that_do_not_share_layers():
    """Some outputs do not depend on some parameters."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return torch.cat([self.a(x), self.b(x)], dim=1)

    model, x = Heads().double(), torch.randn(3, 4).double()
    for method in ("factors", "gradients", "func"):
        same(empirical_ntk(model, x, kind="full", method=method), full(model, x))
        same(empirical_ntk(model, x, method=method), traced(full(model, x)))


def test_outputs_and_parameters():
    model, x = built("MLP")
    labels = torch.tensor([0, 1, 2, 0, 1])
    rows = pntk.Featurizer(model, "margin", "identity", params="*.weight")((x, labels))
    found = empirical_ntk(model, (x, labels), output="margin", params="*.weight")
    same(found, rows @ rows.T)
    rows = pntk.Featurizer(model, lambda m, b: m(b)[:, 1], "identity")(x)
    same(empirical_ntk(model, x, output=lambda m, b: m(b)[:, 1]), rows @ rows.T)
    assert model.training is False and all(p.requires_grad for p in model.parameters())


def test_samples_of_all_kinds():
    model, x = built("CNN with batch norm")
    labels = torch.arange(5)
    expected = empirical_ntk(model, x)
    for data in (
        (x, labels),
        TensorDataset(x, labels),
        DataLoader(TensorDataset(x, labels), batch_size=2),
    ):
        same(empirical_ntk(model, data), expected)
    same(empirical_ntk(model, TensorDataset(x, labels), (x[:2], labels[:2])), expected[:, :2])


def test_precision():
    model, x = built("MLP")
    exact = empirical_ntk(model, x)
    model, x = model.float(), x.float()
    single, double = empirical_ntk(model, x), empirical_ntk(model, x, precision="fp64")
    assert (exact.dtype, single.dtype) == (torch.float64, torch.float32)
    assert double.dtype == torch.float64
    scale = exact.abs().max()
    assert 1e-9 < (double - exact).abs().max() / scale < 1e-6
    assert (single - exact).abs().max() / scale < 2e-6


def test_an_object_is_used_again():
    model, x = built("ViT")
    ntk = EmpiricalNTK(model, "full")
    first, second = ntk(x), ntk(x[1:], x[:2])
    same(second, first[1:, :2])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    same(ntk(x), full(model, x))  # with the weights as they are


def test_budget_cuts_tiles(monkeypatch):
    model, x = built("LeNet")
    x = x.repeat(10, 1, 1, 1)
    whole, tiles = empirical_ntk(model, x), []
    work = EmpiricalNTK._tile_of
    monkeypatch.setattr(
        EmpiricalNTK, "_tile_of", lambda self, b, s, u: tiles.append(s) or work(self, b, s, u)
    )
    found = empirical_ntk(model, x, memory_budget="5MB")
    assert len(tiles) > 1
    same(found, whole)


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [None, "module"])
@pytest.mark.parametrize("kind", ["trace", "full"])
def test_files(tmp_path, monkeypatch, kind, components):
    model, x = built("MLP")
    monkeypatch.setattr(EmpiricalNTK, "_tile", lambda *_: 2)
    expected = empirical_ntk(model, x, kind=kind, components=components)
    path = empirical_ntk(model, x, kind=kind, components=components, out=tmp_path / "k.h5")
    kernel = open_kernel(path)
    kernel.check()
    if components:
        assert kernel.header.components == tuple(expected)
        expected = torch.stack(list(expected.values()), dim=2)
    assert path == tmp_path / "k.h5" and kernel.header.entry == tuple(expected.shape[2:])
    np.testing.assert_array_equal(kernel.values, expected.numpy())
    np.testing.assert_array_equal(kernel.read(1, 3), expected.numpy()[1:3])


def test_files_resume(tmp_path, monkeypatch):
    model, x = built("MLP")
    expected = empirical_ntk(model, x, kind="full")
    monkeypatch.setattr(EmpiricalNTK, "_tile", lambda *_: 2)
    work, made = EmpiricalNTK._tile_of, []

    def stopped(self, batch, sides, unfolds):
        made.append(sides)
        if len(made) == 3:
            raise KeyboardInterrupt
        return work(self, batch, sides, unfolds)

    monkeypatch.setattr(EmpiricalNTK, "_tile_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        empirical_ntk(model, x, kind="full", out=tmp_path / "k.h5")
    assert not (tmp_path / "k.h5").exists()
    path = empirical_ntk(model, x, kind="full", out=tmp_path / "k.h5")
    assert len(made) == 3 + 4  # six tiles, of which two were kept
    same(torch.from_numpy(np.array(open_kernel(path).values)), expected)


def test_what_identifies_samples_does_not_depend_on_batches():
    x, y = torch.randn(150, 3), torch.arange(150)
    data = TensorDataset(x, y)
    found = {content_of(samples_of(DataLoader(data, batch_size=size))) for size in (1, 7, 200)}
    assert len(found | {content_of(samples_of((x, y)))}) == 1
    assert content_of(samples_of((x + 1, y))) not in found


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m, x: (m, x + 1, "full"), "content"),
        (lambda m, x: (m, x, "trace"), "entry"),
        (lambda m, x: (m, x[:4], "full"), "shape"),
        (lambda m, x: (m.requires_grad_(True)[0], x, "full"), "params"),
    ],
)
def test_the_beginning_of_another_kernel(tmp_path, monkeypatch, change, field):
    model = nn.Sequential(nn.Linear(6, 3)).double()
    x = torch.randn(5, 6).double()
    monkeypatch.setattr(KernelWriter, "finish", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        empirical_ntk(model, x, kind="full", out=tmp_path / "k.h5")
    model, x, kind = change(model, x)
    with pytest.raises(OSError, match=rf"another kernel: .*{field}"):
        empirical_ntk(model, x, kind=kind, out=tmp_path / "k.h5")


# ---- costs -------------------------------------------------------------------------------------


def test_costs():
    # a layer without positions: by factors an entry takes O + Q multiplications, not O Q
    layer = Sizes(positions=1, shared=100, varying=50, entries=5000, factors=True, dense=False)
    assert cost(layer, 1, 1, 10**9, 10**9) == pytest.approx((182, 5000), rel=1e-3)
    assert cost(layer, 10, 1, 10**9, 10**9)[1] == pytest.approx(50_000, rel=1e-3)
    # making gradients is shared among the samples of a tile
    assert cost(layer, 1, 1, 10, 10)[1] == pytest.approx(5000 * 1.2)
    image = Sizes(positions=1024, shared=9, varying=8, entries=72, factors=True, dense=False)
    by_factors, by_gradients = cost(image, 1, 1, 100, 100)
    assert by_gradients < by_factors


def test_outputs_have_to_share_the_same_factor():
    def product(rows, columns):
        return [Product(rows, Columns(columns), 2)]

    x, y, z = (torch.randn(2, 3, 4) for _ in range(3))
    assert shared_factor(product(y, x), product(z, x)) is True
    assert shared_factor(product(x, y), product(x, z)) is False
    assert shared_factor(product(x, y), product(z, z)) is None
    factors = Factors(True, (1, 2))
    assert factors.add(0, 0, product(y, x))
    assert not factors.add(0, 1, product(y, z))  # the rows are the same, not the columns
    assert factors.add(0, 1, product(z, x))


def test_ways():
    model, x = built("LeNet")
    ntk = EmpiricalNTK(model)
    ntk(x)
    assert ntk.axes == Axes((), 3, False)
    ways = ntk.ways
    assert ways["conv1.weight"].shared is None and ways["fc1.weight"].shared is True
    assert ways["fc1.weight"].bias == "fc1.bias" and ways["conv1.weight"].bias is None
    assert (ways["fc1.weight"].calls, ways["fc1.bias"].calls) == (1, 0)
    ntk = EmpiricalNTK(model, components="parameter")
    ntk(x)
    assert ntk.ways["fc1.weight"].bias is None  # whose share is asked for by itself


# ---- bad input ---------------------------------------------------------------------------------


class Numbers(IterableDataset):
    def __iter__(self):
        yield from torch.randn(3, 6)


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def test_a_kernel_past_the_budget_says_what_fits():
    model, x = nn.Linear(6, 10), torch.randn(100, 6)
    size = 100 * 100 * 10 * 10 * 4
    with pytest.raises(
        ConfigError, match=rf"100 x 100 x 10 x 10 takes {size:,} bytes.*86 x 86 samples would fit"
    ):
        empirical_ntk(model, x, kind="full", memory_budget="4MB")
    with pytest.raises(ConfigError, match=r"memory_budget leaves .* use memory_budget="):
        empirical_ntk(nn.Linear(6, 10), torch.randn(2, 6), memory_budget="1MB")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda y: y.to(torch.complex64), OutputError, "complex64, which is complex"),
        (lambda y: y.argmax(1), OutputError, "int64, which is not floating point"),
        (lambda y: y.sum(), OutputError, r"shape \(\)"),
        (lambda y: y * y.mean(0), CheckError, "changes with the batch|do not add up"),
        (lambda y: y.detach(), OutputError, "no gradient path"),
        (lambda y: y + torch.randn_like(y), ModelError, "draws random numbers"),
    ],
)
def test_outputs_that_have_no_kernel(function, error, message):
    with pytest.raises(error, match=message):
        empirical_ntk(Returns(function), torch.randn(4, 6))


@pytest.mark.parametrize(
    ("x", "x2", "message"),
    [
        (torch.randn(4, 6), torch.randn(4, 5), r"float32 \(6,\).*float32 \(5,\)"),
        (torch.randn(4, 6), torch.randn(4, 6).double(), "float32.*float64"),
        (torch.randn(4, 6), (torch.randn(4, 6), torch.arange(4)), r"of the columns .*int64 \(\)"),
        (torch.randn(0, 6), None, "empty"),
        (Numbers(), None, "Numbers, a stream"),
        ("abc", None, "cannot read examples from a str"),
    ],
)
def test_samples_that_do_not_fit(x, x2, message):
    with pytest.raises(DataError, match=message):
        empirical_ntk(nn.Linear(6, 3), x, x2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "block"}, "unknown kind 'block'; expected one of trace, pntk, diagonal, full"),
        ({"method": "fast"}, "unknown method 'fast'"),
        ({"components": "layer"}, "unknown components 'layer'"),
        ({"precision": "bf16"}, "unknown precision 'bf16'"),
        ({"trace_axes": (1,)}, "kind='full' or 'diagonal'"),
        ({"kind": "full", "trace_axes": "1"}, "trace_axes is '1'"),
        ({"kind": "full", "trace_axes": (0,)}, r"axes from 1 to 1 \(0 holds the samples\)"),
        ({"kind": "full", "trace_axes": (1, -1)}, "different axes"),
        ({"memory_budget": "much"}, "memory_budget is 'much'"),
        ({"memory_budget": None}, "memory_budget is None"),
        ({"params": "nothing.*"}, "matches no parameter"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        empirical_ntk(nn.Linear(6, 3), torch.randn(4, 6), **options)


def test_more_refusals(tmp_path):
    with pytest.raises(ConfigError, match=r"model is a function; expected a torch\.nn\.Module"):
        empirical_ntk(lambda x: x, torch.randn(4, 6))
    with pytest.raises(ModelError, match=r"BatchNorm1d.*model\.eval\(\)"):
        empirical_ntk(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), torch.randn(4, 6))
    Path(tmp_path / "k.h5").touch()
    with pytest.raises(OSError, match=r"k\.h5 exists"):
        empirical_ntk(nn.Linear(6, 3), torch.randn(4, 6), out=tmp_path / "k.h5")


@pytest.mark.parametrize("tile", [2, 4])
def test_entries_that_are_not_finite(monkeypatch, tile):
    monkeypatch.setattr(EmpiricalNTK, "_tile", lambda *_: tile)
    x = torch.randn(4, 6)
    x[2, 0] = float("nan")
    with pytest.warns(PntkWarning, match=r"entries of (row|column) 2 of the kernel are NaN"):
        kernel = empirical_ntk(nn.Linear(6, 3), x)
    assert kernel[2].isnan().all() and kernel[:, 2].isnan().all()
    assert kernel[[0, 1, 3]][:, [0, 1, 3]].isfinite().all()


def test_a_budget_that_is_more_than_there_is(monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(EmpiricalNTK, "_tile_of", fails)
    with pytest.raises(MemoryError, match=r"tile of 4 x 4 samples .* memory_budget below 1000"):
        empirical_ntk(nn.Linear(6, 3), torch.randn(4, 6))


def test_calls_that_differ_from_batch_to_batch():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            x = self.layer(x)
            return self.layer(x) if len(x) > 3 else x

    ntk = EmpiricalNTK(Sometimes(), method="gradients", check=False)
    ntk(torch.randn(2, 3))
    with pytest.raises(ModelError, match="called more often for this batch"):
        ntk(torch.randn(5, 3))


def test_a_model_that_was_changed_after_the_object_was_made():
    model, x = nn.Linear(6, 3), torch.randn(4, 6)
    ntk = EmpiricalNTK(model)
    ntk(x)
    model.weight = nn.Parameter(torch.zeros(3, 6))
    with pytest.raises(ModelError, match=r"were replaced .weight. since this was made"):
        ntk(x)


@pytest.mark.gpu
@every_model
@pytest.mark.parametrize("kind", ["trace", "full"])
def test_a_gpu_gives_the_same_kernel(name, kind):
    model, x = built(name)
    expected = empirical_ntk(model, x, kind=kind)
    same(empirical_ntk(model.cuda(), x.cuda(), kind=kind), expected)
