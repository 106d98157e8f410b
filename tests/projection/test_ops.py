"""The compiled operators: known to torch's own tools, and never a crash on a wrong argument."""

import numpy as np
import psutil
import pytest
import torch

from pntk.projection import ProjectionSpec, bits, ops
from pntk.projection.hadamard_native import NativeHadamardSketch
from pntk.projection.sketch import Columns, Windows

pytestmark = pytest.mark.skipif(not bits.has_native(), reason=str(bits.native_error()))

K = 64
CPU = {"device": torch.device("cpu")}
IDS = torch.tensor([[0, 9, 3, 3], [5, 5, 5, 5]])


def sketch(shape=(10, 12), k=K):
    return NativeHadamardSketch(
        ProjectionSpec("hadamard", k), "w", shape, dtype=torch.float32, **CPU
    )


def tail():
    return (*sketch()._stream(0), torch.ones(2, K))


WINDOWS = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4]  # four positions of a linear layer
NAMES = {
    "hadamard_gradient": "gradient diagonals shifts tiles seed stream out",
    "hadamard_factors": "rows columns diagonals shifts tiles windows groups seed stream out",
    "hadamard_affine": (
        "rows columns diagonals shifts tiles windows groups bias_diagonals bias_shifts bias_tiles "
        "bias_stream seed stream out"
    ),
    "hadamard_lookup": "ids delta diagonals shifts tiles seed stream out",
    "dense_project": "gradient normal scale bf16 seed stream out",
}


def arguments(name):
    """Return one good call's arguments, by name."""
    factors = torch.randn(2, 4, 10).mT, torch.randn(2, 12, 1, 1, 4), *sketch()._map, WINDOWS, 1
    bias = sketch((10,))
    values = {
        "hadamard_gradient": (torch.randn(2, 120), *sketch()._map),
        "hadamard_factors": factors,
        "hadamard_affine": (*factors, *bias._map, bias._stream(0)[1]),
        "hadamard_lookup": (IDS, torch.randn(2, 4, 12), *sketch()._map),
        "dense_project": (torch.randn(2, 120), False, 0.125, False),
    }
    return dict(zip(NAMES[name].split(), (*values[name], *tail()), strict=True))


def call(name, **changes):
    given = arguments(name)
    unknown = set(changes) - set(given)
    assert not unknown
    return getattr(torch.ops.pntk, name)(*{**given, **changes}.values())


each_operator = pytest.mark.parametrize("name", NAMES)


def test_every_operator_is_tested_here():
    assert set(NAMES) == set(ops.SCHEMAS)


# ---- known to torch ----------------------------------------------------------------------------


@each_operator
def test_opcheck(name):
    operator = getattr(torch.ops.pntk, name).default
    torch.library.opcheck(operator, tuple(arguments(name).values()))


@each_operator
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_break(name, backend):
    given = arguments(name)
    expected, found = given["out"].clone(), given["out"].clone()
    run = getattr(torch.ops.pntk, name)

    def step(out, *rest):
        run(*rest, out)
        return out * 2

    rest = list(given.values())[:-1]
    torch._dynamo.reset()
    result = torch.compile(step, fullgraph=True, backend=backend)(found, *rest)
    assert torch.equal(result, step(expected, *rest))
    assert torch.equal(found, expected) and not torch.equal(found, torch.ones(2, K))


@each_operator
def test_meta_tensors_run_nothing(name):
    given = arguments(name)
    moved = {key: x.to("meta") for key, x in given.items() if isinstance(x, torch.Tensor)}
    call(name, **moved)


# ---- wrong types and memory order -------------------------------------------------------------


DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.complex64, torch.bool]


@each_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wrong_types_are_named(name, dtype):
    for label, x in arguments(name).items():
        if not isinstance(x, torch.Tensor) or x.dtype == dtype:
            continue
        found = rf"{label} {str(dtype).split('.')[1]} \["
        with pytest.raises(TypeError, match=rf"pntk::{name} got .*{found}.*; expected float32"):
            call(name, **{label: x.to(dtype)})


@each_operator
def test_what_must_be_contiguous_is(name):
    for label, x in arguments(name).items():
        if not isinstance(x, torch.Tensor) or label in ("rows", "columns"):
            continue
        gaps = torch.stack([x, x], dim=-1)[..., 0]
        with pytest.raises(TypeError, match=rf"{label} \S+ \[.*\] of strides \(.*contiguous"):
            call(name, **{label: gaps})


@each_operator
def test_rows_that_share_memory_are_refused(name):
    with pytest.raises(TypeError, match=r"out float32 \[2, 64\] of strides \(0, 1\)"):
        call(name, out=torch.zeros(1, K).expand(2, K))


@each_operator
def test_gradient_history_is_refused(name):
    label = next(iter(arguments(name)))
    if label == "ids":
        label = "delta"
    with pytest.raises(RuntimeError, match="requires grad"):
        call(name, **{label: arguments(name)[label].requires_grad_()})


@each_operator
def test_other_devices_are_refused(name):
    sparse = torch.zeros(2, K).to_sparse()
    with pytest.raises(NotImplementedError, match=f"pntk::{name}"):
        call(name, out=sparse)


# ---- wrong sizes -------------------------------------------------------------------------------


hadamard = pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("hadamard")])


@hadamard
@pytest.mark.parametrize("shape", [(3, K), (2, K - 1), (2, 2 * K), (K,), (2, K, 1)], ids=str)
def test_out_of_another_shape(name, shape):
    with pytest.raises(ValueError, match=r"out is \[.*\]; expected \[2, 64\]"):
        call(name, out=torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 119), (2, 121), (120,), (2, 10, 12), (2, 0)], ids=str)
def test_gradients_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"gradient is \["):
        call("hadamard_gradient", gradient=torch.zeros(shape))


@pytest.mark.parametrize("name", ["hadamard_factors", "hadamard_affine"])
@pytest.mark.parametrize(
    "changes",
    [
        {"rows": torch.zeros(2, 10)},
        {"rows": torch.zeros(2, 9, 4)},
        {"rows": torch.zeros(2, 10, 5)},
        {"rows": torch.zeros(3, 10, 4)},
        {"columns": torch.zeros(2, 12, 4)},
        {"columns": torch.zeros(2, 13, 1, 1, 4)},
        {"columns": torch.zeros(3, 12, 1, 1, 4)},
        {"columns": torch.zeros(2, 12, 1, 2, 4), "windows": [0] * 3 + [1, 2, 1] + WINDOWS[6:]},
        {"groups": 2},
    ],
    ids=str,
)
def test_factors_of_another_shape(name, changes):
    with pytest.raises(ValueError, match=r"rows is \[.*\] and columns \["):
        call(name, **changes)


@pytest.mark.parametrize("groups", [0, -1, 3, 2**62])
def test_groups_that_do_not_divide(groups):
    with pytest.raises(ValueError, match=rf"groups is {groups}, which does not divide the 10 rows"):
        call("hadamard_factors", groups=groups)


@pytest.mark.parametrize("place", range(15))
@pytest.mark.parametrize("value", [-1, -(2**63), 2**31, 2**62, 2**63 - 1])
def test_windows_out_of_range(place, value):
    windows = [*WINDOWS[:place], value, *WINDOWS[place + 1 :]]
    label = ("padding", "kernel", "stride", "dilation", "grid")[place // 3]
    with pytest.raises(ValueError, match=rf"{label} is {value}; expected [01] to 2\^31 - 1"):
        call("hadamard_factors", windows=windows)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (WINDOWS[:-1], "windows has 14 numbers, not 15"),
        ([*WINDOWS[:-1], 5], "a window ends at pixel 4 of an axis that has 4"),
        ([0] * 3 + [1] * 3 + [2**31 - 1] * 6 + [1, 1, 4], "a window ends at pixel 6442450941"),
        ([2**31 - 1] * 3 + WINDOWS[3:], r"pixels of the padded input are more than 2\^48"),
        ([0, 2**20, 2**22, *WINDOWS[3:]], r"numbers of the padded input are more than 2\^48"),
    ],
)
def test_windows_that_do_not_fit(windows, message):
    with pytest.raises(ValueError, match=message):
        call("hadamard_factors", windows=windows)


@hadamard
@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", [0, -1, 2**31, 2**63 - 1])
def test_tiles_out_of_range(name, place, value):
    tiles = sketch()._map[2]
    label = ("rows", "channels", "positions", "ko", "ki")[place]
    with pytest.raises(ValueError, match=rf"{label} is {value}; expected 1 to 2\^31 - 1"):
        call(name, tiles=[*tiles[:place], value, *tiles[place + 1 :]])


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ([10, 12], "tiles has 2 numbers, not 7"),
        ([10, 12, 1, 7, 8, 1, 0], "ko is 7 and ki 8; expected powers of two"),
        ([10, 12, 1, 16, 4, 1, 0], "ko is 16 and ki 4; expected powers of two, ki at least 8"),
        ([11, 12, 1, 8, 16, 1, 0], "diagonals has 32 numbers, not 32|shifts has 6 numbers"),
        ([17, 12, 1, 8, 8, 1, 0], "diagonals has 32 numbers, not 40"),
        ([10, 12, 2, 8, 8, 1, 0], "shifts has 6 numbers, not 10"),
        ([2**30, 2**30, 2**30, 8, 8, 1, 0], r"numbers in the parameter are more than 2\^48"),
        ([10, 12, 1, 2**30, 2**30, 1, 0], r"numbers in the parameter's tiles are more than 2\^48"),
    ],
)
def test_tiles_that_do_not_fit(tiles, message):
    with pytest.raises(ValueError, match=message):
        call("hadamard_gradient", tiles=tiles)


@hadamard
@pytest.mark.parametrize(("place", "value"), [(0, 8), (1, -1), (2, 1), (3, -1), (5, 2**30)])
def test_shifts_out_of_range(name, place, value):
    shifts = sketch()._map[1].clone()
    shifts[place] = value
    with pytest.raises(ValueError, match=rf"(row|column) shift {value} is outside of \[0, [81]\)"):
        call(name, shifts=shifts)


@pytest.mark.parametrize("bad", [10, -1, 2**31, 2**63 - 1, -(2**63)])
def test_ids_out_of_range(bad):
    ids = IDS.clone()
    ids[1, 2] = bad
    with pytest.raises(ValueError, match=rf"id {bad} is outside of \[0, 10\)"):
        call("hadamard_lookup", ids=ids)


@pytest.mark.parametrize("shape", [(2, 4, 11), (2, 3, 12), (3, 4, 12), (2, 48)], ids=str)
def test_lookups_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"ids is \[2, 4\] and delta \[.*; expected \[b, T\]"):
        call("hadamard_lookup", delta=torch.zeros(shape))


def test_biases_of_another_size():
    for shape in ((17,), (10, 12)):
        diagonals, shifts, tiles = sketch(shape)._map
        with pytest.raises(ValueError, match="the bias is not a vector of 10 numbers"):
            call("hadamard_affine", bias_diagonals=diagonals, bias_shifts=shifts, bias_tiles=tiles)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_seeds_are_64_bit_patterns(seed):
    with pytest.raises((RuntimeError, OverflowError)):
        call("hadamard_gradient", seed=seed)


# ---- sums of norms -----------------------------------------------------------------------------


NORMS = {"delta": (3, 37, 300), "x": (3, 37, 300), "mean": (37,)}


def norm_sums(**changes):
    given = {name: torch.randn(shape) for name, shape in NORMS.items()} | changes
    return torch.ops.pntk.norm_sums(*given.values())


@pytest.mark.parametrize("positions", [0, 1, 3, 16, 257, 1000])
@pytest.mark.parametrize("order", ["last", "first", "gaps", "expanded"])
@pytest.mark.parametrize("channels", [1, 15, 37])
def test_norm_sums(positions, order, channels):
    delta, x = torch.randn(2, 3, channels, positions), torch.randn(2, 3, channels, positions)
    mean, (delta, x) = torch.randn(channels), (delta[0], x[0])
    if order == "first":
        delta, x = (each.mT.contiguous().mT for each in (delta, x))
    elif order == "gaps":
        delta, x = torch.stack([delta, x], dim=-1).unbind(-1)
    elif order == "expanded":
        delta, x = delta[:, :, :1].expand(delta.shape), x[:1].expand(x.shape)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(torch.ops.pntk.norm_sums(delta, x, mean))
    finally:
        torch.set_num_threads(before)
    centred = x.double() - mean.double()[:, None]
    terms = (delta * centred, delta.double())
    for one, other, term in zip(*found, terms, strict=True):
        assert torch.equal(one, other)
        assert bool(((one - term.sum(2)).abs() <= 5e-6 * term.abs().sum(2)).all())


def test_norm_sums_opcheck():
    given = [torch.randn(shape) for shape in NORMS.values()]
    torch.library.opcheck(torch.ops.pntk.norm_sums.default, given)


@pytest.mark.parametrize("label", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_sums_of_wrong_types(label, dtype):
    with pytest.raises(TypeError, match=rf"pntk::norm_sums got .*{label} {str(dtype)[6:]} \["):
        norm_sums(**{label: torch.ones(NORMS[label]).to(dtype)})


@pytest.mark.parametrize(
    ("label", "shape", "message"),
    [
        ("delta", (3, 37), r"delta is \[3, 37\], x \[3, 37, 300\] and mean \[37\]; expected"),
        ("x", (3, 37, 299), r"delta is \[3, 37, 300\] and x \[3, 37, 299\]"),
        ("x", (2, 37, 300), r"delta is \[3, 37, 300\] and x \[2, 37, 300\]"),
        ("mean", (36,), r"mean is \[36\]; expected \[37\]"),
        ("mean", (37, 1), r"mean \[37, 1\]; expected"),
    ],
)
def test_norm_sums_of_another_shape(label, shape, message):
    with pytest.raises(ValueError, match=message):
        norm_sums(**{label: torch.zeros(shape)})


# ---- nothing to add ----------------------------------------------------------------------------


def test_no_samples_and_no_positions():
    for b, t in ((0, 4), (2, 0), (0, 0)):
        rows = torch.ones(b, K)
        for shape in ((10, 12), (10,)):
            sketch(shape).add_gradient(torch.zeros(b, *shape), rows * 1)
        sketch().add_gradient(torch.zeros(b, 10, 12), rows)
        sketch().add_products(torch.zeros(b, 10, t), Columns(torch.zeros(b, 12, t)), rows)
        sketch().add_lookup(torch.zeros(b, t, dtype=torch.int64), torch.zeros(b, t, 12), rows)
        windows = Windows((3, 1), (1, 1), (1, 1), (2, t))
        seen = Columns(torch.zeros(b, 12, 4, t), windows)
        sketch((10, 12, 3, 1)).add_products(torch.zeros(b, 10, 2 * t), seen, rows)
        assert torch.equal(rows, torch.ones(b, K))


def test_an_input_without_pixels_is_refused():
    windows = [0, 0, 1, *WINDOWS[3:-1], 2]
    with pytest.raises(ValueError, match="an axis of the input is 0; expected 1 to"):
        call("hadamard_factors", columns=torch.zeros(2, 12, 1, 1, 0), windows=windows)


# ---- large -------------------------------------------------------------------------------------


FAR = 2**31 + 5


@pytest.fixture
def far_memory():
    """Room past 2^31 floats; only the pages that a test touches take memory."""
    try:
        return torch.empty(FAR + 4096)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("axis", range(5))
def test_strides_past_2_31(far_memory, axis):
    near = [13, 5, 3, 0, 2]  # any that keep the numbers apart
    strides = [FAR if n == axis else step for n, step in enumerate(near)]
    shape = [2 if n == axis else size for n, size in enumerate((1, 2, 1, 1, 1))]
    columns = far_memory.as_strided(shape, strides)
    columns.copy_(torch.randn(shape))
    grid = tuple(shape[2:])
    b, positions = shape[0], grid[0] * grid[1] * grid[2]
    rows = torch.randn(b, 9, positions)
    windows = Windows((1, 1, 1), (1, 1, 1), (1, 1, 1), grid)
    add = sketch((9, shape[1], 1, 1, 1)).add_products
    found, expected, swapped = torch.zeros(3, b, K)
    add(rows, Columns(columns, windows), found)
    add(rows, Columns(columns.clone(), windows), expected)
    assert torch.equal(found, expected) and bool(found.any())
    if axis < 3:  # the other factor may lie as far apart
        left = columns[..., 0, 0]
        add = sketch((shape[1], 9)).add_products
        right = Columns(rows.expand(b, 9, left.shape[2]))
        add(left, right, swapped)
        add(left.clone(), right, expected.zero_())
        assert torch.equal(swapped, expected)


def test_factors_of_more_than_2_31_numbers():
    """Row factors that are the same at every position: 2.1e9 of them, in 16 KiB."""
    o, c, positions = 4096, 8, 2**19 + 1
    rows, columns = torch.randn(1, o, 1), torch.randn(1, c, positions)
    found, expected = torch.zeros(2, 1, K)
    sketch((o, c)).add_products(rows.expand(1, o, positions), Columns(columns), found)
    total = columns.sum(2, keepdim=True, dtype=torch.float64).float()
    sketch((o, c)).add_products(rows, Columns(total), expected)
    assert float((found - expected).norm()) <= 1e-7 * float(rows.norm() * columns.abs().sum())


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 12 * 2**30, reason="needs 12 GiB")
def test_gradients_past_2_31_numbers():
    o, c = 2**16 + 1, 2**15
    gradient = torch.from_numpy(np.zeros((1, o, c), np.float32))  # zeros that take no memory yet
    ids = torch.tensor([[0, 2**15, o - 2, o - 1]])
    delta = torch.randn(1, 4, c)
    gradient[0, ids[0]] = delta[0]
    big = sketch((o, c))
    found, expected = torch.zeros(2, 1, K)
    big.add_gradient(gradient, found)
    big.add_lookup(ids, delta, expected)
    assert float((found - expected).norm() / expected.norm()) <= 5e-6
