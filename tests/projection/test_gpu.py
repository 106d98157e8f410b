"""Both GPU implementations against the float64 reference, with the same cases.

Where there is no GPU, the CUDA sources run in the emulator, and Triton's interpreter runs its half
of these tests in a process of its own (tests/kernels/test_interpreted.py).
"""

import os

import pytest
import torch
from torch import nn

from pntk import Featurizer, ntk
from pntk.errors import ConfigError
from pntk.ntk import projected
from pntk.projection import ProjectionSpec, cuda, gpu_ops, selftest
from pntk.projection.dispatch import Projector
from pntk.projection.reference import projection_matrix
from pntk.projection.sketch import Columns, Windows

from ..cuda.emulated import emulates, load

NAME = "block.0.weight"
BOUNDS = {"fp32": 1e-5, "bf16": 4e-3}
precisions = pytest.mark.parametrize("precision", BOUNDS)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if HAS_GPU else []


@pytest.fixture
def device():
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(params=["cuda", "triton"])
def impl(request, monkeypatch):
    if request.param == "triton" and not (HAS_GPU or INTERPRETED):
        pytest.skip("in a process of its own")
    if request.param == "cuda" and not HAS_GPU:
        if INTERPRETED or not emulates():
            pytest.skip("in another process" if INTERPRETED else "no emulator here")
        monkeypatch.setattr(cuda, "_load", lambda: (load(), None))
    return request.param


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def sketch_of(shape, impl, device, precision="fp32", family="hadamard", k=512, **options):
    given = {"dtype": torch.float32, "device": device, "impl": impl, "precision": precision}
    spec = ProjectionSpec(family, k, 5)
    return Projector(spec, {NAME: shape}, **given, **options).sketch(NAME)


def check(sketch, add, gradient, bound, output=0):
    """Compare what ``add(sketch, rows)`` adds with the reference's map of a gradient."""
    before = torch.randn(len(gradient), sketch.proj_dim)
    rows = before.clone().to(sketch.device)
    add(sketch, rows)
    matrix = projection_matrix(sketch.spec, NAME, sketch.shape, output)
    expected = gradient.reshape(len(gradient), -1) @ torch.from_numpy(matrix).T
    found = rows.cpu().double() - before.double()
    assert float((found - expected).norm() / expected.norm()) < bound


@precisions
@pytest.mark.parametrize("k", [8, 512, 4096])
@pytest.mark.parametrize("output", [0, 2])
def test_products_of_a_linear_layer(impl, device, precision, k, output):
    o, i = (9, 20) if k == 8 else (70, 33)  # an interpreter takes its time over many tiles
    delta, a = normal(3, o, 9), normal(3, i, 9)

    def add(sketch, rows):
        columns = sketch.prepare_columns(Columns(a.float().to(device)))
        prepared = sketch.prepare_rows(delta.float().to(device))
        sketch.add_products(prepared, columns, rows, output)

    sketch = sketch_of((o, i), impl, device, precision, k=k)
    check(sketch, add, delta @ a.mT, BOUNDS[precision], output)


@pytest.mark.parametrize("channels", [3, 40])
def test_products_of_a_convolution(impl, device, channels):
    windows = Windows((3, 2), (2, 1), (1, 2), (3, 4), (1, 0))
    x, delta = normal(2, channels, 6, 6), normal(2, 20, 12)
    gradient = torch.stack(
        [torch.bmm(delta, patch.mT) for patch in windows.patches(x)], dim=-1
    ).unflatten(-1, (3, 2))

    def add(sketch, rows):
        last = x.float().to(device).contiguous(memory_format=torch.channels_last)
        columns = sketch.prepare_columns(Columns(last, windows))
        sketch.add_products(sketch.prepare_rows(delta.float().to(device)), columns, rows)

    check(sketch_of((20, channels, 3, 2), impl, device), add, gradient, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(70, 33), (9, 20, 3, 3), (9, 3, 3, 3), (100,), (1, 40), ()])
def test_gradients(impl, device, shape, dtype):
    gradient = normal(3, *shape).to(dtype)
    add = lambda sketch, rows: sketch.add_gradient(gradient.to(device), rows)  # noqa: E731
    check(sketch_of(shape, impl, device), add, gradient.double(), 1e-5)


@precisions
@pytest.mark.parametrize("shape", [(300, 40), (1, 40)])
def test_lookups(impl, device, shape, precision):
    ids = torch.randint(0, shape[0], (3, 6))
    ids[:, 1] = ids[:, 0]
    delta = normal(3, 6, shape[1])
    gradient = torch.zeros(3, *shape, dtype=torch.float64)
    for n in range(3):
        gradient[n].index_add_(0, ids[n], delta[n])
    add = lambda s, rows: s.add_lookup(ids.to(device), delta.float().to(device), rows)  # noqa: E731
    check(sketch_of(shape, impl, device, precision), add, gradient, BOUNDS[precision])


@pytest.mark.parametrize("family", ["rademacher", "normal"])
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("tf32", 1e-3), ("bf16", 4e-3)])
def test_dense(impl, device, family, precision, bound):
    if (impl, family) == ("cuda", "normal"):
        pytest.skip("Triton makes it")
    gradient = normal(3, 7, 30)
    add = lambda sketch, rows: sketch.add_gradient(gradient.float().to(device), rows)  # noqa: E731
    check(sketch_of((7, 30), impl, device, precision, family, k=70), add, gradient, bound)


def test_hadamard_has_no_tf32(impl, device):
    with pytest.raises(ConfigError, match="is 'tf32'; hadamard on a GPU has fp32 or bf16"):
        sketch_of((7, 3), impl, device, "tf32")


def test_a_sample_has_the_same_row_in_any_batch(impl, device):
    sketch = sketch_of((70, 33), impl, device)
    delta, a = (normal(5, size, 9).float().to(device) for size in (70, 33))

    def rows(part, workspace):
        sketch.workspace = workspace
        out = torch.zeros(len(delta[part]), 512, device=device)
        bias = sketch_of((70,), impl, device)
        columns = sketch.prepare_columns(Columns(a[part]))
        sketch.add_affine(bias, delta[part], columns, out)
        sketch.add_gradient((delta @ a.mT)[part], out)
        ids = torch.arange(9, device=device).expand(5, 9)
        sketch.add_lookup(ids[part], a.mT[part].contiguous(), out)
        return out

    whole = rows(slice(0, 5), 2**20)
    assert torch.equal(rows(slice(3, 4), 2**20)[0], whole[3])
    assert torch.equal(rows(slice(0, 5), 1), whole)


@pytest.mark.parametrize("k", [32, 512, 4096])
def test_vectors_are_added_together(impl, device, k):
    shapes = {"a": (3,), "b": (700,), "c": (1, 100), "d": ()}
    spec = ProjectionSpec("hadamard", k, 5)
    projector = Projector(spec, shapes, dtype=torch.float32, device=device, impl=impl)
    rows = [projector.empty_rows(4) for _ in range(3)]
    expected = [torch.zeros(4, k, dtype=torch.float64) for _ in rows]
    launches = []
    with pytest.MonkeyPatch.context() as patch, projector.collecting():
        launch = gpu_ops.launch
        patch.setattr(
            gpu_ops, "launch", lambda name, *args: (launches.append(name), launch(name, *args))
        )
        for place, (output, part) in enumerate(
            [(0, slice(0, 4)), (2, slice(0, 4)), (0, slice(1, 3))]
        ):
            for name, shape in shapes.items():
                gradient = normal(len(rows[place][part]), *shape)
                projector.sketch(name).queue_gradient(
                    gradient.float().to(device), rows[place][part], output
                )
                matrix = torch.from_numpy(projection_matrix(spec, name, shape, output))
                expected[place][part] += gradient.reshape(len(gradient), -1) @ matrix.T
        assert "gradient" not in launches
    for found, wanted in zip(rows, expected, strict=True):
        assert float((found.cpu().double() - wanted).norm() / wanted.norm()) < 1e-5


def test_signs_are_kept_where_there_is_room(impl, device):
    gradient = normal(2, 70, 33).float().to(device)
    rows = []
    for cache in (0, 2**20):
        sketch = sketch_of((70, 33), impl, device, cache=cache)
        rows.append(torch.zeros(2, 512, device=device))
        for _ in range(2):
            sketch.add_gradient(gradient, rows[-1])
        assert len(sketch._cache._kept) == bool(cache)
    assert torch.equal(*rows)


class Net(nn.Module):
    """Layers of every rule, small enough for an interpreter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, bias=False)
        self.layer_norm = nn.LayerNorm(5)
        self.head = nn.Linear(100, 3)
        self.scale = nn.Parameter(torch.ones(3))  # by torch.func

    def forward(self, x):
        x = torch.tanh(self.norm(self.conv(x)))
        x = self.layer_norm(torch.tanh(self.up(torch.tanh(self.grouped(x)))))
        return self.scale * self.head(x.flatten(1))


class Parts(nn.Module):
    """Layers that see several parts of a sample one after another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.norm = nn.GroupNorm(2, 6)
        self.scaled = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):  # [b, 4, 2, 5, 5]
        x = torch.tanh(self.scaled(self.norm(self.conv(x.flatten(0, 1)))))
        return self.head(x.mean((2, 3))).unflatten(0, (-1, 4)).sum(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_that_see_parts_of_samples(impl, device, precision):
    model, x = Parts().eval(), torch.randn(3, 4, 2, 5, 5)
    expected = Featurizer(model.double(), proj_dim=64, impl="torch")(x.double())
    options = {"impl": impl, "precision": precision, "check": precision == "fp32"}
    rows = Featurizer(model.float().to(device), proj_dim=64, **options)(x.to(device))
    error = float((rows.cpu().double() - expected).norm() / expected.norm())
    assert error < (2e-5 if precision == "fp32" else 5e-2)


class OneRow(nn.Module):
    """A weight of one output, which is cut as a vector is, and parts of samples."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 1, 3)
        self.up = nn.ConvTranspose1d(1, 3, 2, bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x):  # [b, 4, 2, 6]
        x = self.up(torch.tanh(self.conv(x.flatten(0, 1))))
        return self.head(torch.tanh(x).mean(2)).unflatten(0, (-1, 4)).sum(1)


@pytest.mark.parametrize("projection", ["hadamard", "rademacher"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_of_one_output_that_see_parts_of_samples(impl, device, precision, projection):
    model, x = OneRow().eval(), torch.randn(3, 4, 2, 6)
    options = {"projection": projection, "proj_dim": 64, "check": precision == "fp32"}
    expected = Featurizer(model.double(), impl="torch", **options)(x.double())
    options |= {"impl": impl, "precision": precision}
    rows = Featurizer(model.float().to(device), **options)(x.to(device))
    error = float((rows.cpu().double() - expected).norm() / expected.norm())
    assert error < (2e-5 if precision == "fp32" else 5e-2)


def test_layers_without_positions_add_nothing(impl, device):
    sketch = sketch_of((70, 33), impl, device)
    rows = torch.zeros(3, 512, device=device)
    columns = sketch.prepare_columns(Columns(torch.zeros(3, 33, 0, device=device)))
    sketch.add_products(sketch.prepare_rows(torch.zeros(3, 70, 0, device=device)), columns, rows)
    sketch.add_lookup(
        torch.zeros(3, 0, dtype=torch.int64, device=device),
        torch.zeros(3, 0, 33, device=device),
        rows,
    )
    assert not rows.any()


@pytest.mark.parametrize("output", ["pntk", "trace"])
def test_a_model_from_end_to_end(impl, device, output):
    model = Net().eval()
    model.norm.running_mean.normal_(), model.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 2, 8, 8)
    expected = Featurizer(model.double(), output, proj_dim=256, impl="torch")(x.double())
    f = Featurizer(model.float().to(device), output, proj_dim=256, impl=impl)
    rows = f(x.to(device)).cpu().double()
    assert float((rows - expected).norm() / expected.norm()) < 2e-5


def test_self_test(impl, device, monkeypatch):
    checked = {}
    monkeypatch.setattr(selftest, "_require", lambda *found: checked.update({found[2]: found[3]}))
    selftest.check_kernels.__wrapped__(impl, device)
    assert {"gradient", "look-up", "product", "convolution", "rademacher", "norm sums"} <= {
        *checked
    }
    assert all(error < selftest.BOUND / 2 for error in checked.values())


def test_a_wrong_kernel_is_named_with_its_remedy(impl, device, monkeypatch):
    right = gpu_ops.RUN["lookup"]

    def wrong(*args):
        right(*args)
        args[-1][0, 0, 3] += 1

    monkeypatch.setitem(gpu_ops.RUN, "lookup", wrong)
    kernel = {"cuda": "compiled CUDA", "triton": "Triton"}[impl]
    with pytest.raises(selftest.KernelError, match=f"the {kernel} kernel for look-up is wrong on"):
        selftest.check_kernels.__wrapped__(impl, device)


def test_a_kernel_that_does_not_run_is_named_with_its_remedy(impl, device, monkeypatch):
    def fail(*args):
        raise OSError("no compiler")

    monkeypatch.setitem(gpu_ops.RUN, "bits", fail)
    kernels = {"cuda": "compiled CUDA", "triton": "Triton"}[impl]
    message = rf"the {kernels} kernels do not run on .* \(OSError: no compiler\); use impl='torch'"
    with pytest.raises(selftest.KernelError, match=message):
        selftest.check_kernels.__wrapped__(impl, device)


def test_memory_that_runs_out_is_not_the_fault_of_kernels(impl, device, monkeypatch):
    def fail(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(gpu_ops.RUN, "bits", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        selftest.check_kernels.__wrapped__(impl, device)


@pytest.mark.skipif(not (HAS_GPU or INTERPRETED), reason="in a process of its own")
def test_a_wrong_matrix_of_products_is_noticed(device, monkeypatch):
    selftest.check_gram.__wrapped__(device)
    right = gpu_ops.RUN["gram"]

    def wrong(*args):
        right(*args)
        args[-1][3, 5] += 1

    monkeypatch.setitem(gpu_ops.RUN, "gram", wrong)
    with pytest.raises(selftest.KernelError, match=r"Triton kernel for products of rows is wrong"):
        selftest.check_gram.__wrapped__(device)


@pytest.mark.skipif(not HAS_GPU, reason="in one process on a GPU only")
def test_both_prepare_the_same_factors(device):
    x = normal(2, 33, 10).float().to(device)
    sketches = [sketch_of((70, 33), impl, device) for impl in ("cuda", "triton")]
    ours, theirs = (sketch.prepare_columns(Columns(x)).tensor.float() for sketch in sketches)
    assert ours.shape == theirs.shape == (2, 2, 10, 64)
    torch.testing.assert_close(ours.sum(1), theirs.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not (HAS_GPU or INTERPRETED), reason="in a process of its own")
@pytest.mark.parametrize("normalize", [False, True])
def test_kernel_matrices(device, normalize, monkeypatch):
    monkeypatch.setattr(projected, "choose_tile", lambda need, budget: 40)
    a, b = torch.randn(70, 33), torch.randn(20, 33)
    for other in (None, b):
        found = ntk(a, other, normalize=normalize, device=device, impl="triton")
        expected = ntk(a.double(), None if other is None else b.double(), normalize=normalize)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
