"""The CUDA Hadamard kernels against float64, fragment by fragment, where there is no GPU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pntk.projection.cuda import TYPES
from pntk.projection.reference import hadamard_matrix, projection_matrix
from pntk.projection.sketch import Columns, Windows, scatter_rows
from pntk.projection.spec import ProjectionSpec
from pntk.projection.tiles import MAX_ORDER, padded

from . import hadamard_calls as calls
from .emulated import load, needs_emulator
from .hadamard_calls import Map, error, product_size

pytestmark = needs_emulator
BOUND = {1: 4e-3, 2: 1e-5}  # by planes
FLOAT32 = 2e-6
SIZES = [8, 16, 32, 64, 128, 512, 1024, 2048, 4096, 8192, 16384]
# O, C, T: below, at and above what tiles, groups of eight and steps of 16 hold
MATRICES = [(3, 9, 1), (63, 65, 7), (9, 130, 16), (130, 3, 33), (65, 63, 130), (2, 1, 130)]
CONVOLUTIONS = [
    # shape, image, windows without their grid
    ((9, 63, 3), (17,), {"stride": (2,), "padding": (2,), "dilation": (1,)}),
    ((65, 9, 3, 3), (7, 6), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
    (
        (3, 40, 2, 1, 3),
        (3, 4, 5),
        {"stride": (1, 2, 1), "padding": (1, 0, 1), "dilation": (2, 1, 1)},
    ),
    ((70, 3, 3, 3), (8, 9), {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}),
    ((5, 70, 1, 1), (11, 13), {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}),
]


@pytest.fixture(scope="module")
def module():
    return load()


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def products_case(mapped, rows, columns):
    """Return float64 rows, and the bound's scale."""
    patches = [patch.double() for patch in columns.patches()]
    gradient = torch.stack([rows.double() @ patch.mT for patch in patches], dim=-1)
    expected = torch.zeros(rows.shape[0], mapped.proj_dim, dtype=torch.float64)
    mapped.reference.add_gradient(gradient, expected)
    return expected, product_size(rows, columns)


def windows_of(shape, image, sizes):
    spans = [d * (k - 1) + 1 for k, d in zip(shape[2:], sizes["dilation"], strict=True)]
    grid = (
        (n + 2 * p - span) // s + 1
        for n, p, span, s in zip(image, sizes["padding"], spans, sizes["stride"], strict=True)
    )
    return Windows(kernel=shape[2:], grid=tuple(grid), **sizes)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", TYPES)
def test_mix(module, order, dtype):
    for (c, t), layout in itertools.product([(1, 1), (63, 16), (130, 33), (300, 70)], range(3)):
        x = normal(2, c, t, dtype=dtype)
        if layout == 1:
            x = x.mT.contiguous().mT
        elif layout == 2:
            x = normal(2, 2 * c, 3 * t, dtype=dtype)[:, ::2, ::3]
        channels = padded(c, order)
        diagonal = 1.0 - 2.0 * (normal(channels) > 0)
        blocks = torch.zeros(2, channels, t, dtype=torch.float64)
        blocks[:, :c] = x.double() * diagonal[:c, None]
        h = torch.from_numpy(hadamard_matrix(order))
        expected = (h @ blocks.view(2, -1, order, t)).view(2, channels, t)
        for last in (True, False):
            y = calls.mix(module, x, diagonal, order, 2, last=last)
            found = y.double().sum(0) if last else y.double().sum(0).mT
            whole = torch.zeros_like(found)  # padding is zeros
            whole[:, :channels, :t] = expected
            assert (found - whole).abs().max() < 2e-5 * expected.abs().max()
            one = calls.mix(module, x, diagonal, order, 1, last=last)
            assert torch.equal(one[0], y[0])


@pytest.mark.parametrize("proj_dim", SIZES)
def test_products(module, proj_dim):
    for rows, channels, positions in MATRICES:
        mapped = Map(module, (rows, channels), proj_dim)
        left, right = normal(2, rows, positions), Columns(normal(2, channels, positions))
        expected, size = products_case(mapped, left, right)
        for planes, splits in [(2, (1, 1)), (1, (1, 1)), (2, (2, 5)), (1, (5, 2))]:
            found = mapped.products(left, right, planes, splits)
            assert error(found, expected, size) < BOUND[planes], (rows, channels, positions, splits)


@pytest.mark.parametrize("proj_dim", [512, 2048, 4096])
def test_odd_share_of_paired_rows(module, proj_dim):
    """One plane takes two macro rows at a time; here a split ends after the first of a pair."""
    mapped = Map(module, (330, 9), proj_dim)
    left, right = normal(1, 330, 20), Columns(normal(1, 9, 20))
    expected, size = products_case(mapped, left, right)
    assert error(mapped.products(left, right, 1, (2, 1)), expected, size) < BOUND[1]


@pytest.mark.parametrize("proj_dim", [8, 64, 512, 2048, 4096, 8192])
@pytest.mark.parametrize(("shape", "image", "sizes"), CONVOLUTIONS)
def test_convolution(module, proj_dim, shape, image, sizes):
    windows = windows_of(shape, image, sizes)
    mapped = Map(module, shape, proj_dim)
    left = normal(2, shape[0], math.prod(windows.grid))
    right = Columns(normal(2, shape[1], *image), windows)
    expected, size = products_case(mapped, left, right)
    for planes, splits in [(2, (1, 2)), (1, (1, 1))]:
        found = mapped.products(left, right, planes, splits)
        assert error(found, expected, size) < BOUND[planes]


@pytest.mark.parametrize("proj_dim", SIZES)
def test_gradient(module, proj_dim):
    cases = [(2, 3), (63, 65), (130, 9), (33, 128), (9, 63, 3), (65, 9, 2, 2), (40, 3, 3, 1)]
    cases += [(1,), (63,), (1000,), (1, 5, 26)]
    for shape, dtype in zip(cases, itertools.cycle(TYPES), strict=False):
        mapped = Map(module, shape, proj_dim)
        gradient = normal(3, *shape, dtype=dtype)
        expected = torch.zeros(3, proj_dim, dtype=torch.float64)
        mapped.reference.add_gradient(gradient.double(), expected)
        for splits in (1, 2, 5):
            found = mapped.gradient(gradient, splits)
            assert error(found, expected, gradient.double().flatten(1).norm(dim=1)) < FLOAT32


@pytest.mark.parametrize("proj_dim", SIZES)
def test_lookup(module, proj_dim):
    for count, width, tokens in [(130, 65, 7), (9, 130, 33), (65, 3, 1)]:
        mapped = Map(module, (count, width), proj_dim)
        ids = torch.randint(count, (3, tokens), generator=torch.Generator().manual_seed(tokens))
        delta = normal(3, tokens, width)
        expected = torch.zeros(3, proj_dim, dtype=torch.float64)
        mapped.reference.add_gradient(scatter_rows(ids, delta.double(), count), expected)
        size = delta.double().flatten(1).norm(dim=1)
        for planes, splits in [(2, 1), (1, 2), (2, 5)]:
            found = mapped.lookup(ids, delta, planes, splits)
            assert error(found, expected, size) < BOUND[planes]
    outside = torch.tensor([[-1, count], [count + 5, 0]])
    found = mapped.lookup(outside, delta[:2, :1].repeat(1, 2, 1), 2, 1)
    assert not found[0].any()
    assert found[1].any()


@pytest.mark.parametrize("proj_dim", [8, 128, 4096])
def test_literal_matrix(module, proj_dim):
    """Against the matrix that is written from the formulas alone."""
    for shape in [(5, 9), (3, 6, 2), (20, 3, 2), (70,)]:
        mapped = Map(module, shape, proj_dim)
        matrix = projection_matrix(ProjectionSpec("hadamard", proj_dim, seed=7), calls.NAME, shape)
        gradient = normal(2, *shape)
        expected = gradient.double().flatten(1) @ torch.from_numpy(matrix).T
        found = mapped.gradient(gradient, 2)
        assert error(found, expected, gradient.double().flatten(1).norm(dim=1)) < FLOAT32


@pytest.mark.parametrize("proj_dim", [32, 512, 4096, 16384])
def test_rows_do_not_depend_on_the_batch(module, proj_dim):
    """The same bits for a sample alone, in a batch, and again."""
    mapped = Map(module, (130, 70, 2), proj_dim)
    windows = windows_of((130, 70, 2), (9,), {"stride": (1,), "padding": (1,), "dilation": (1,)})
    left, image = normal(5, 130, math.prod(windows.grid)), normal(5, 70, 9)
    gradient = normal(5, 130, 70, 2)
    embedding, ids = Map(module, (130, 70), proj_dim), torch.arange(5 * 9).view(5, 9) * 3 % 130

    def rows(chosen):
        yield mapped.products(left[chosen], Columns(image[chosen], windows), 1, (1, 2))
        yield mapped.products(left[chosen], Columns(image[chosen], windows), 2, (2, 1))
        yield mapped.gradient(gradient[chosen], 2)
        yield embedding.lookup(ids[chosen], image[chosen].mT.contiguous(), 2, 2)

    for together, again in zip(rows(slice(0, 5)), rows(slice(0, 5)), strict=True):
        assert torch.equal(together, again)
    for i in (0, 3):
        for together, alone in zip(rows(slice(0, 5)), rows(slice(i, i + 1)), strict=True):
            assert torch.equal(together[i : i + 1], alone)


def test_the_largest_map(module):
    """k = 65,536: sixteen blocks of 64 x 64 numbers a tile."""
    mapped = Map(module, (300, 270), 2**16)
    assert (mapped.layout.ko, mapped.layout.ki) == (MAX_ORDER, MAX_ORDER)
    left, right = normal(1, 300, 3), Columns(normal(1, 270, 3))
    expected, size = products_case(mapped, left, right)
    for planes, splits in [(1, (1, 1)), (2, (2, 2))]:
        assert error(mapped.products(left, right, planes, splits), expected, size) < BOUND[planes]
    assert error(mapped.gradient(left @ right.tensor.mT, 2), expected) < FLOAT32
    ids, delta = torch.tensor([[299, 0, 256]]), normal(1, 3, 270)
    expected.zero_()
    mapped.reference.add_gradient(scatter_rows(ids, delta.double(), 300), expected)
    assert error(mapped.lookup(ids, delta, 2, 1), expected) < BOUND[2]


def test_no_positions(module):
    mapped = Map(module, (9, 5), 64)
    found = mapped.products(torch.empty(2, 9, 0), Columns(torch.empty(2, 5, 0)), 2, (1, 2))
    assert torch.equal(found, torch.zeros(2, 64))


def test_errors(module):
    vector = Map(module, (70,), 64)
    with pytest.raises(RuntimeError, match="a matrix was expected"):
        vector.lookup(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, 8), 1, 1)
    mapped = Map(module, (9, 5), 4096)
    with pytest.raises(RuntimeError, match=r"a size is 2147483648; a sample's may be at most"):
        mapped.call_products([1, 64, 2**31, 2**31], [1, 1, 2**31])
    mapped.tiles[3:5] = [32, 128]
    with pytest.raises(RuntimeError, match="32 x 128; ko must be 64 or more where ki is"):
        mapped.call_products([1, 64, 8, 8], [1, 1, 8])
