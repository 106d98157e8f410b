"""The compiled tile-Hadamard sketch against float64, at every level that this processor has."""

import copy
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pntk import Featurizer
from pntk.projection import ProjectionSpec, bits
from pntk.projection.hadamard import HadamardSketch
from pntk.projection.hadamard_native import NativeHadamardSketch
from pntk.projection.reference import projection_matrix
from pntk.projection.signs import TileSigns
from pntk.projection.sketch import Columns, Windows
from pntk.projection.tiles import TileLayout

pytestmark = pytest.mark.skipif(not bits.has_native(), reason=str(bits.native_error()))

NAME, BIAS = "block.0.weight", "block.0.bias"
BOUND = 5e-6  # relative to the gradient
DIMS = [8, 16, 32, 64, 128, 512, 2048, 4096, 16384]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
dims = st.sampled_from(DIMS)
outputs = st.sampled_from([0, 2])
seeds = st.integers(0, 2**31)
positions = st.sampled_from([1, 2, 3, 7, 17, 128, 129, 300])
batches = st.integers(1, 3)


def native(shape, k, seed=0, name=NAME):
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    return NativeHadamardSketch(ProjectionSpec("hadamard", k, seed), name, shape, **options)


def in_float64(shape, k, seed=0, name=NAME):
    options = {"dtype": torch.float64, "device": torch.device("cpu")}
    return HadamardSketch(ProjectionSpec("hadamard", k, seed), name, shape, **options)


def strided(shape, seed):
    """Numbers of any memory order, with gaps between them or the same along an axis."""
    choose = random.Random(seed)
    order = choose.sample(range(len(shape)), len(shape))
    steps = [choose.choice([1, 1, 1, 2]) for _ in shape]
    expanded = [choose.random() < 0.15 for _ in shape]
    sizes = [1 if e else n * s for n, s, e in zip(shape, steps, expanded, strict=True)]
    inverse = sorted(range(len(shape)), key=order.__getitem__)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn([sizes[i] for i in order], generator=generator).permute(inverse)
    at = tuple(
        slice(s - 1, None, s) if not e else slice(None)
        for s, e in zip(steps, expanded, strict=True)
    )
    return x[at].expand(shape)


def rows_of(sketch, batch, add, output=0, start=None):
    rows = torch.zeros(batch, sketch.proj_dim) if start is None else start.clone()
    add(sketch, rows, output)
    return rows


def products(delta, columns):
    def add(sketch, rows, output):
        left = sketch.prepare_rows(delta.flatten(2))
        sketch.add_products(left, sketch.prepare_columns(columns), rows, output)

    return add


def affine(delta, columns, k, seed=0):
    """Products, and the bias of the same layer in one pass."""

    def add(sketch, rows, output):
        bias = native((delta.shape[1],), k, seed, BIAS)
        prepared = sketch.prepare_columns(columns)
        sketch.add_affine(bias, delta.flatten(2), prepared, rows, output)

    return add


def lookups(ids, delta):
    return lambda sketch, rows, output: sketch.add_lookup(ids, delta, rows, output)


def whole(gradient):
    return lambda sketch, rows, output: sketch.add_gradient(gradient, rows, output)


def scattered(ids, delta, rows):
    gradient = torch.zeros(len(ids), rows, delta.shape[2], dtype=torch.float64)
    index = ids[..., None].expand(delta.shape)
    return gradient.scatter_add_(1, index, delta.double())


def convolved(x, delta, shape, **options):
    """Weight gradients [b, *shape] of a convolution by autograd, in float64."""
    weight = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    conv = CONV[len(shape) - 2]
    return torch.stack(
        [
            torch.autograd.grad(conv(one, weight, **options), weight, back)[0]
            for one, back in zip(x.double().split(1), delta.double().split(1), strict=True)
        ]
    )


def check(k, gradient, add, *, magnitude=None, output=0, seed=0, added=False):
    """Compare what ``add`` makes of factors with the float64 sketch of their gradient.

    magnitude: the gradient with all numbers taken positive; where large numbers cancel, the error
    is a part of what cancelled.
    """
    shape, b = tuple(gradient.shape[1:]), len(gradient)
    start = torch.randn(b, k) if added else torch.zeros(b, k)
    found = rows_of(native(shape, k, seed), b, add, output, start)
    expected = start.double()
    in_float64(shape, k, seed).add_gradient(gradient.double(), expected, output)
    scale = gradient.double().reshape(b, -1).norm(dim=1) + start.norm(dim=1)
    if magnitude is not None:
        scale = scale.maximum(0.1 * magnitude.reshape(b, -1).norm(dim=1))
    assert bool(((found - expected).norm(dim=1) <= BOUND * scale).all())


# ---- against the reference matrix -------------------------------------------------------------


@pytest.mark.parametrize("k", DIMS)
@pytest.mark.parametrize("shape", [(), (5,), (200,), (1, 30, 2), (6, 5, 3), (4, 9, 2, 2)], ids=str)
def test_gradients_against_the_matrix(k, shape):
    gradient = torch.randn(3, *shape)
    for output in (0, 2):
        spec = ProjectionSpec("hadamard", k, 2**63 + 1)
        matrix = torch.from_numpy(projection_matrix(spec, NAME, shape, output))
        expected = gradient.double().reshape(3, -1) @ matrix.T
        found = rows_of(native(shape, k, spec.seed), 3, whole(gradient), output)
        assert float((found - expected).norm()) <= BOUND * float(gradient.norm())


@pytest.mark.parametrize("k", DIMS)
@pytest.mark.parametrize("positions", [1, 3, 17, 300])
def test_factors_against_the_matrix(k, positions):
    shape = (11, 21)
    spec = ProjectionSpec("hadamard", k)
    matrix = torch.from_numpy(projection_matrix(spec, NAME, shape, 2))
    delta, a = torch.randn(2, 11, positions), torch.randn(2, 21, positions)
    ids = torch.randint(0, 11, (2, positions))
    for gradient, add in (
        (delta.double() @ a.double().mT, products(delta, Columns(a))),
        (scattered(ids, a.mT, 11), lookups(ids, a.mT)),
    ):
        found = rows_of(native(shape, k), 2, add, 2)
        expected = gradient.flatten(1) @ matrix.T
        assert float((found - expected).norm()) <= BOUND * float(gradient.norm())


# ---- any shape, any memory order ---------------------------------------------------------------


@settings(max_examples=60)
@given(
    b=batches,
    shape=st.lists(st.integers(1, 40), max_size=2) | st.lists(st.integers(1, 9), max_size=5),
    k=dims,
    output=outputs,
    added=st.booleans(),
    seed=seeds,
)
def test_any_gradient(b, shape, k, output, added, seed):
    gradient = strided((b, *shape), seed)
    check(k, gradient, whole(gradient), output=output, seed=seed, added=added)


@settings(max_examples=100)
@given(
    b=batches,
    o=st.integers(1, 150),
    i=st.integers(1, 150),
    t=positions,
    k=dims,
    output=outputs,
    added=st.booleans(),
    seed=seeds,
)
def test_any_product(b, o, i, t, k, output, added, seed):
    delta, a = strided((b, o, t), seed), strided((b, i, t), seed + 1)
    gradient, magnitude = (
        x.double() @ y.double().mT for x, y in ((delta, a), (delta.abs(), a.abs()))
    )
    add = products(delta, Columns(a))
    check(k, gradient, add, magnitude=magnitude, output=output, added=added)


@st.composite
def axes(draw):
    """Size, kernel, stride, dilation, padding and grid of one axis of a convolution."""
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (4, 3, 3))
    padding, reach = draw(st.integers(0, 3)), dilation * (kernel - 1) + 1
    size = draw(st.integers(max(1, reach - 2 * padding), 14))
    return size, kernel, stride, dilation, padding, (size + 2 * padding - reach) // stride + 1


@settings(max_examples=150)
@given(
    axes=st.lists(axes(), min_size=1, max_size=3),
    groups=st.sampled_from([1, 1, 2, 3, 8]),
    o=st.integers(1, 20),
    i=st.integers(1, 20),
    k=dims,
    added=st.booleans(),
    seed=seeds,
)
def test_any_convolution(axes, groups, o, i, k, added, seed):
    size, kernel, stride, dilation, padding, grid = zip(*axes, strict=True)
    if groups == 8:  # depthwise, with o channels made of each
        groups, i = i, 1
    x, delta = strided((2, groups * i, *size), seed), strided((2, groups * o, *grid), seed + 1)
    weight = (groups * o, i, *kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    gradient, magnitude = (
        convolved(y, z, weight, **options) for y, z in ((x, delta), (x.abs(), delta.abs()))
    )
    add = products(delta, Columns(x, Windows(kernel, stride, dilation, grid, padding, groups)))
    check(k, gradient, add, magnitude=magnitude, seed=seed, added=added)


@settings(max_examples=80)
@given(
    b=batches,
    o=st.integers(1, 90),
    i=st.integers(1, 30),
    t=positions,
    groups=st.sampled_from([1, 1, 3]),
    k=dims,
    output=outputs,
    seed=seeds,
)
def test_any_bias(b, o, i, t, groups, k, output, seed):
    delta, a = strided((b, groups * o, t), seed), strided((b, groups * i, t), seed + 1)
    columns = Columns(a, Windows((1,), (1,), (1,), (t,), groups=groups))
    weight = native((groups * o, i, 1), k, seed)
    found = rows_of(weight, b, affine(delta, columns, k, seed), output)
    expected = rows_of(weight, b, products(delta, columns), output).double()
    bias = in_float64((groups * o,), k, seed, BIAS)
    bias.add_gradient(delta.sum(2, dtype=torch.float64), expected, output)
    scale = expected.norm(dim=1) + 0.1 * delta.abs().sum(2).norm(dim=1)
    assert bool(((found - expected).norm(dim=1) <= BOUND * scale).all())


@settings(max_examples=80)
@given(
    b=batches,
    rows=st.sampled_from([2, 7, 64, 65, 500]),
    used=st.sampled_from([1, 2, 500]),
    d=st.integers(1, 70),
    t=positions,
    k=dims,
    output=outputs,
    added=st.booleans(),
    seed=seeds,
)
def test_any_lookup(b, rows, used, d, t, k, output, added, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = rows - 1 - torch.randint(0, min(rows, used), (b, t), generator=generator)
    delta = strided((b, t, d), seed)
    gradient, magnitude = (scattered(ids, x, rows) for x in (delta, delta.abs()))
    check(k, gradient, lookups(ids, delta), magnitude=magnitude, output=output, added=added)


@pytest.mark.parametrize("k", [64, 4096])
def test_channels_last_images(k):
    x = torch.randn(3, 20, 9, 7).contiguous(memory_format=torch.channels_last)
    delta = torch.randn(3, 12, 5, 4).contiguous(memory_format=torch.channels_last)
    columns = Columns(x, Windows((3, 3), (2, 2), (1, 1), (5, 4), (1, 1)))
    gradient = convolved(x, delta, (12, 20, 3, 3), stride=2, padding=1)
    check(k, gradient, products(delta, columns))


LAYERS = {
    "same": (nn.Conv2d(5, 6, (2, 4), padding="same", dilation=(1, 3)), (5, 9, 8)),
    "same in groups": (nn.Conv1d(6, 12, 4, padding="same", groups=3), (6, 11)),
    "reflected": (nn.Conv2d(5, 6, 3, padding=2, padding_mode="reflect"), (5, 9, 8)),
    "circular": (nn.Conv3d(3, 4, 2, padding=1, padding_mode="circular"), (3, 4, 3, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6), (6, 9, 8)),
    "transposed": (
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        (6, 4, 5),
    ),
    "transposed, dilated": (nn.ConvTranspose1d(6, 4, 3, stride=3, dilation=2), (6, 7)),
    "one pixel": (nn.Conv2d(5, 70, 3), (5, 3, 3)),
    "tokens": (nn.Linear(33, 18), (7, 33)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("k", [16, 512, 4096])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind, k):
    layer, shape = LAYERS[kind]
    x = torch.randn(3, *shape)

    def output(model, batch):
        return model(batch).flatten(1).pow(2).sum(1)

    found = Featurizer(copy.deepcopy(layer), output, proj_dim=k, impl="cpu")(x)
    exact = Featurizer(copy.deepcopy(layer).double(), output, proj_dim=k, impl="torch")
    expected = exact(x.double())
    assert float((found - expected).norm() / expected.norm()) <= BOUND


# ---- the same to the bit -----------------------------------------------------------------------


def roads(k, numbers=torch.randn):
    x = numbers(5, 20, 9, 8)
    windows = Windows((3, 3), (1, 2), (1, 1), (9, 4), (1, 1))
    grouped = Windows((3, 3), (1, 2), (1, 1), (9, 4), (1, 1), groups=4)
    few = Windows((2, 2), (1, 1), (1, 1), (8, 7))
    delta, a, ids = numbers(5, 70, 36), numbers(5, 90, 36), torch.randint(0, 70, (5, 36))
    return {
        "gradient": ((70, 90), lambda at: whole(delta[at] @ a[at].mT)),
        "vector": ((500,), lambda at: whole(delta[at].flatten(1)[:, :500])),
        "product": ((70, 90), lambda at: products(delta[at], Columns(a[at]))),
        "outer": ((70, 90), lambda at: products(delta[at, :, :1], Columns(a[at, :, :1]))),
        "affine": ((70, 90), lambda at: affine(delta[at], Columns(a[at]), k)),
        "lookup": ((70, 90), lambda at: lookups(ids[at], a[at].mT)),
        "windows": ((70, 20, 3, 3), lambda at: products(delta[at], Columns(x[at], windows))),
        "groups": ((8, 5, 3, 3), lambda at: products(delta[at, :8], Columns(x[at], grouped))),
        "few channels": (
            (9, 2, 2, 2),
            lambda at: products(
                a[at, :56].flatten(1)[:, : 9 * 56].view(-1, 9, 56), Columns(x[at, :2], few)
            ),
        ),
    }


@pytest.mark.parametrize("k", [8, 128, 4096])
@pytest.mark.parametrize("kind", roads(8))
class TestToTheBit:
    def test_threads(self, kind, k):
        shape, add = roads(k)[kind]
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3, 1):
                torch.set_num_threads(threads)
                found.append(rows_of(native(shape, k), 5, add(slice(None))))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[0], rows) for rows in found[1:])

    def test_company(self, kind, k):
        shape, add = roads(k)[kind]
        together = rows_of(native(shape, k), 5, add(slice(None)))
        for n in range(5):
            alone = rows_of(native(shape, k), 1, add(slice(n, n + 1)))
            assert torch.equal(together[n], alone[0])

    def test_memory_full_of_nan_does_no_harm(self, kind, k):
        shape, add = roads(k)[kind]
        expected = rows_of(native(shape, k), 5, add(slice(None)))
        for other, poison in roads(k, lambda *shape: torch.full(shape, math.nan)).values():
            assert rows_of(native(other, k), 5, poison(slice(None))).isnan().any()
        assert torch.equal(rows_of(native(shape, k), 5, add(slice(None))), expected)


@pytest.mark.parametrize("t", [1, 40])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_samples_stay_alone(t, bad):
    delta, a = torch.randn(3, 40, t), torch.randn(3, 30, t)
    expected = rows_of(native((40, 30), 512), 3, products(delta, Columns(a)))
    a[1, 3, t - 1] = bad
    found = rows_of(native((40, 30), 512), 3, products(delta, Columns(a)))
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


# ---- random bits -------------------------------------------------------------------------------


def random_maps(count):
    choose = random.Random(0)
    for n in range(count):
        shape = tuple(choose.choice([1, 2, 3, 5, 9, 20]) for _ in range(choose.randint(0, 4)))
        name = "".join(chr(choose.randint(32, 0x2FF)) for _ in range(choose.randint(0, 12)))
        yield n, choose.randrange(2**64), name, choose.choice(DIMS[:7]), shape


def test_signs_and_words_of_a_thousand_maps():
    module = bits.native_module()
    for n, seed, name, k, _ in random_maps(1000):
        stream = bits.stream_id("hadamard", k, "entries", n % 3, name)
        start = (n * 0x9E3779B97F4A7C15) % 2 ** (10 + n % 56)
        expected = bits.philox_words_numpy(seed, stream, start, 40)
        by_torch = bits.philox_words_torch(seed, stream, start, 40)
        words, signs = np.empty(40, np.uint32), np.empty(32 * 40, np.int8)
        module.philox_words(words, seed, stream, *divmod(start, 4))
        module.philox_signs(signs, seed, stream, start // 4, 32 * (start % 4))
        assert np.array_equal(words, expected) and np.array_equal(by_torch.numpy(), expected)
        unpacked = np.unpackbits(expected.astype("<u4").view(np.uint8), bitorder="little")
        assert np.array_equal(signs, 1 - 2 * unpacked.astype(np.int8))


def test_entry_signs_of_a_thousand_maps():
    """One element's row is +-1 / sqrt(k) throughout, so its signs are seen to the bit."""
    for n, seed, name, k, shape in random_maps(1000):
        size, output = math.prod(shape), n % 3
        gradient = torch.zeros(1, size)
        gradient[0, n * 7919 % size] = 1
        gradient = gradient.view(1, *shape)
        found = rows_of(native(shape, k, seed, name), 1, whole(gradient), output)
        expected = torch.zeros(1, k, dtype=torch.float64)
        in_float64(shape, k, seed, name).add_gradient(gradient.double(), expected, output)
        assert torch.equal((found * k**0.5).round().double(), (expected * k**0.5).round())
        assert float(found.abs().min()) > 0


def test_the_map_comes_from_numpy_words():
    spec, shape = ProjectionSpec("hadamard", 512, 2**64 - 1), (70, 20, 2)
    tiles = TileLayout.of(shape, 512)
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    signs = TileSigns(spec, NAME, tiles, **options)
    for role, found in (
        ("row_diagonal", signs.row_diagonal),
        ("column_diagonal", signs.column_diagonal),
    ):
        stream = bits.stream_id("hadamard", 512, role, 0, NAME)
        words = bits.philox_words_numpy(spec.seed, stream, 0, -(-len(found) // 32))
        unpacked = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
        assert np.array_equal(found.numpy(), 1.0 - 2.0 * unpacked[: len(found)])


# ---- levels ------------------------------------------------------------------------------------


def other_levels():
    module = bits.native_module()
    if module is None or "PNTK_CPU_LEVEL" in os.environ:
        return []
    return [name for name, supported in module.levels() if supported and name != module.level()]


def child(level, *arguments):
    environment = {**os.environ, "PNTK_CPU_LEVEL": level}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,  # where there is no pntk but the one that is tested here
    )


@pytest.mark.parametrize("level", other_levels())
def test_this_file_at_another_level(level):
    done = child(level, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_level_that_runs_is_the_widest_allowed():
    module = bits.native_module()
    names = [name for name, _ in module.levels()]
    cap = os.environ.get("PNTK_CPU_LEVEL") or names[-1]
    allowed = dict(module.levels()[: names.index(cap) + 1])
    assert module.level() == [name for name, supported in allowed.items() if supported][-1]


def test_unknown_level():
    script = "from pntk.projection import bits\nbits.signs(0, 0, 0, 8)"
    done = child("sse9", "-c", script)
    assert done.returncode == 1
    assert "PNTK_CPU_LEVEL is 'sse9'; set it to one of portable" in done.stderr
    assert "or not at all" in done.stderr
