"""A gradient may come whole, as factors, or as look-ups: all roads give the same row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pntk.projection import ProjectionSpec
from pntk.projection.hadamard import DENSE_LOOKUP, HadamardSketch
from pntk.projection.sketch import Columns, Windows, parts

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
sizes = st.integers(1, 40)
workspaces = st.sampled_from([1, 20_000, 2**26])
specs = st.one_of(
    st.builds(ProjectionSpec, st.just("hadamard"), st.sampled_from([8, 16, 64, 128, 1024])),
    st.builds(ProjectionSpec, st.sampled_from(["rademacher", "normal"]), st.sampled_from([1, 13])),
    st.just(ProjectionSpec("identity")),
)
dtypes = st.sampled_from(sorted(BOUNDS, key=str))
seeds = st.integers(0, 2**31)
# transform the factors, their products, or what the sketch thinks is cheaper
roads = st.sampled_from(["early", "late", "cheaper"])


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def check(make_sketch, spec, gradient, add, *, dtype, workspace, output=0, road="cheaper"):
    """Compare ``add(sketch, rows, output)`` with the sketch of the whole gradient."""
    shape = tuple(gradient.shape[1:])
    sketch = make_sketch(spec, shape, dtype, workspace=workspace)
    if spec.family == "hadamard" and workspace == 1:
        sketch.signs._cache.left = 0  # no room for tables of signs either
    if road != "cheaper":
        sketch._late = lambda positions: road == "late"
    width = spec.proj_dim or gradient[0].numel() * (output + 1)
    found = torch.zeros(len(gradient), width, dtype=dtype)
    expected = torch.zeros(len(gradient), width, dtype=torch.float64)
    add(sketch, found, output)
    make_sketch(spec, shape).add_gradient(gradient, expected, output)
    scale = max(1.0, float(gradient.norm()))  # a row may be small where large numbers cancel
    assert float((found - expected).norm()) <= BOUNDS[dtype] * scale


@settings(max_examples=120)
@given(
    b=st.integers(1, 4),
    o=sizes,
    i=sizes,
    t=st.integers(1, 12),
    spec=specs,
    dtype=dtypes,
    workspace=workspaces,
    output=st.sampled_from([0, 2]),
    road=roads,
    seed=seeds,
)
def test_products(make_sketch, b, o, i, t, spec, dtype, workspace, output, road, seed):
    torch.manual_seed(seed)
    delta, a = normal(b, o, t), normal(b, i, t)

    def add(sketch, rows, output):
        columns = sketch.prepare_columns(Columns(a.to(dtype)))
        sketch.add_products(sketch.prepare_rows(delta.to(dtype)), columns, rows, output)

    check(
        make_sketch,
        spec,
        delta @ a.mT,
        add,
        dtype=dtype,
        workspace=workspace,
        output=output,
        road=road,
    )


axes = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 3))


@settings(max_examples=120)
@given(
    o=st.integers(1, 12),
    i=st.integers(1, 12),
    axes=st.lists(axes, min_size=1, max_size=3),
    spec=specs,
    dtype=dtypes,
    workspace=workspaces,
    road=roads,
    seed=seeds,
)
def test_windows(make_sketch, o, i, axes, spec, dtype, workspace, road, seed):
    torch.manual_seed(seed)
    kernel, stride, dilation, grid = zip(*axes, strict=True)
    size = [d * (k - 1) + s * (n - 1) + 1 for k, s, d, n in axes]
    x, delta = normal(3, i, *size), normal(3, o, *grid)
    weight = normal(o, i, *kernel).requires_grad_()
    conv = CONV[len(axes)]
    gradient = torch.stack(
        [
            torch.autograd.grad(
                conv(x[n : n + 1], weight, stride=stride, dilation=dilation), weight, delta[n, None]
            )[0]
            for n in range(3)
        ]
    )

    def add(sketch, rows, output):
        windows = Windows(kernel, stride, dilation, grid)
        columns = sketch.prepare_columns(Columns(x.to(dtype), windows))
        left = sketch.prepare_rows(delta.flatten(2).to(dtype))
        sketch.add_products(left, columns, rows, output)

    check(make_sketch, spec, gradient, add, dtype=dtype, workspace=workspace, road=road)


@settings(max_examples=120)
@given(
    b=st.integers(1, 4),
    rows=st.integers(1, 150),
    d=st.integers(1, 20),
    t=st.integers(1, 6),
    spec=specs,
    dtype=dtypes,
    workspace=workspaces,
    output=st.sampled_from([0, 2]),
    seed=seeds,
)
def test_lookups(make_sketch, b, rows, d, t, spec, dtype, workspace, output, seed):
    torch.manual_seed(seed)
    ids, delta = torch.randint(0, rows, (b, t)), normal(b, t, d)
    gradient = torch.zeros(b, rows, d, dtype=torch.float64)
    for n in range(b):
        for place in range(t):
            gradient[n, ids[n, place]] += delta[n, place]

    def add(sketch, out, output):
        sketch.add_lookup(ids, delta.to(dtype), out, output)

    check(make_sketch, spec, gradient, add, dtype=dtype, workspace=workspace, output=output)


@pytest.mark.parametrize("rows", [DENSE_LOOKUP * 3, DENSE_LOOKUP * 3 + 1])
@pytest.mark.parametrize("k", [8, 64, 512])
def test_both_branches_of_hadamard_lookups(make_sketch, reference, distance, device, rows, k):
    ids = torch.tensor([[0, rows - 1, 0], [5, 5, 5]])
    delta = normal(2, 3, 11)
    gradient = torch.zeros(2, rows, 11, dtype=torch.float64)
    for n in range(2):
        gradient[n].index_add_(0, ids[n], delta[n])
    sketch = make_sketch(ProjectionSpec("hadamard", k), (rows, 11), device=device)
    out = torch.zeros(2, k, dtype=torch.float64, device=device)
    sketch.add_lookup(ids.to(device), delta.to(device), out, 2)
    expected = gradient.flatten(1) @ reference("hadamard", k, (rows, 11), 2).T
    assert distance(out, expected) <= 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("k", [8, 64, 1024])
def test_products_on_the_gpu(make_sketch, reference, distance, k):
    delta, a = normal(3, 33, 5), normal(3, 70, 5)
    sketch = make_sketch(ProjectionSpec("hadamard", k), (33, 70), torch.float32, "cuda")
    rows = torch.zeros(3, k, device="cuda")
    columns = sketch.prepare_columns(Columns(a.float().cuda()))
    sketch.add_products(sketch.prepare_rows(delta.float().cuda()), columns, rows)
    expected = (delta @ a.mT).flatten(1) @ reference("hadamard", k, (33, 70)).T
    assert distance(rows, expected) <= 1e-5


def test_prepared_columns_serve_several_outputs(make_sketch, distance):
    delta, a = normal(2, 9, 4), normal(2, 6, 4)
    sketch = make_sketch(ProjectionSpec("hadamard", 64), (9, 6))
    columns = sketch.prepare_columns(Columns(a))
    for output in range(3):
        found, expected = torch.zeros(2, 2, 64, dtype=torch.float64)
        sketch.add_products(sketch.prepare_rows(delta), columns, found, output)
        sketch.add_gradient(delta @ a.mT, expected, output)
        assert distance(found, expected) <= 1e-12


@given(count=st.integers(0, 50), each=st.integers(0, 9), limit=st.integers(0, 40))
def test_parts_cover_everything_once_and_keep_to_the_limit(count, each, limit):
    slices = list(parts(count, each, limit))
    assert [n for part in slices for n in range(part.start, part.stop)] == list(range(count))
    for part in slices:
        taken = part.stop - part.start
        assert taken >= 1 and (taken == 1 or taken * each <= limit)


@pytest.mark.parametrize("shape", [(65, 31), (5, 130), (1, 31)])
def test_no_positions_add_nothing(shape):
    spec, device = ProjectionSpec("hadamard", 64), torch.device("cpu")
    sketch = HadamardSketch(spec, "w", shape, dtype=torch.float32, device=device)
    out = torch.ones(3, 64)
    columns = sketch.prepare_columns(Columns(torch.zeros(3, shape[1], 0)))
    sketch.add_products(sketch.prepare_rows(torch.zeros(3, shape[0], 0)), columns, out)
    assert torch.equal(out, torch.ones(3, 64))
