"""What the GPU operators refuse, and that torch.compile sees through them; no kernel runs here."""

import math

import pytest
import torch

from pntk.errors import ConfigError
from pntk.projection import gpu_ops, ops

ROWS, CHANNELS, K = 70, 90, 512  # ko = 16, ki = 32
TILES = [ROWS, CHANNELS, 1, 16, 32, 1, 0]
VECTOR = [3, 32, 1, 16, 32, 1, 1]
B, T = 3, 5
ONE = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, T]


def floats(*shape):
    return torch.zeros(shape)


def halves(*shape):
    return torch.zeros(shape, dtype=torch.bfloat16)


def shifted(*shape):
    """A tensor that starts two bytes too late."""
    return halves(math.prod(shape) + 1)[1:].view(shape)


def ints(*shape):
    return torch.zeros(shape, dtype=torch.int32)


def good():
    """Arguments that every operator takes, by operator and name."""
    rows, channels = 80, 96
    signs, shifts = ints(3 * rows), ints(3 + 3 + 5)
    map_ = {
        "diagonals": floats(rows + channels),
        "signs": signs,
        "shifts": shifts,
        "tiles": TILES,
        "to": floats(2, B, K),
    }
    return {
        "bits": {"seed": -1, "stream": 2, "words": ints(7)},
        "mix": {
            "x": floats(B, CHANNELS, T),
            "diagonal": floats(channels),
            "order": 32,
            "y": halves(2, B, T, 128),
            "positions_last": False,
        },
        "products": {
            "left": halves(2, B, 128, 8),
            "right": halves(2, B, T, 128),
            "signs": signs,
            "shifts": shifts,
            "tiles": TILES,
            "size": [1, 1, T],
            "windows": ONE,
            "splits_rows": 2,
            "to": floats(4, B, K),
        },
        "gradient": {"g": floats(B, ROWS * CHANNELS), **map_},
        "lookup": {
            "ids": torch.zeros(B, T, dtype=torch.int64),
            "right": halves(1, B, T, 128),
            **map_,
        },
        "dense": {
            "g": floats(B, 100),
            "family": "normal",
            "precision": "tf32",
            "scale": 0.5,
            "seed": 1,
            "stream": 2,
            "to": floats(1, B, 13),
        },
        "gram": {
            "x": floats(4, 6),
            "y": floats(5, 6),
            "x_scale": None,
            "y_scale": floats(5),
            "out": floats(4, 5),
        },
        "norm_sums": {
            "delta": floats(B, 4, 6),
            "x": halves(B, 4, 6),
            "mean": floats(4),
            "scale": floats(B, 4),
            "shift": floats(B, 4),
        },
    }


def call(name, given, impl="cuda"):
    getattr(torch.ops.pntk, f"gpu_{name}")(impl, *given.values())


@pytest.fixture
def launched(monkeypatch):
    """The launches that operators asked for, instead of kernels."""
    calls = []
    monkeypatch.setattr(gpu_ops, "kernel", lambda *what: lambda *args: calls.append((what, args)))
    return calls


@pytest.mark.parametrize("impl", ["cuda", "triton"])
@pytest.mark.parametrize("name", gpu_ops.SCHEMAS)
def test_what_fits_is_launched(launched, name, impl):
    call(name, good()[name], impl)
    [(what, args)] = launched
    assert what == (impl, name)
    assert len(args) == len(good()[name])


def test_words_are_given_unsigned(launched):
    call("bits", good()["bits"])
    assert launched[0][1][0] == 2**64 - 1 == ops.signed(-1) % 2**64


@pytest.mark.parametrize("name", ["bits", "dense"])
def test_what_differs_in_its_stream_alone_is_checked_once(launched, monkeypatch, name):
    checked = []
    monkeypatch.setattr(gpu_ops, f"_check_{name}", lambda *args: checked.append(args))
    run = gpu_ops._run(name)
    for stream in range(3):
        run("triton", *(good()[name] | {"stream": stream}).values())
    assert len(checked) == 1 and len(launched) == 3


@pytest.mark.parametrize(
    ("name", "argument", "bad", "message"),
    [
        ("bits", "words", floats(7), "words is torch.float32 of shape .7.; expected torch.int32"),
        ("bits", "words", ints(14)[::2], "words is not contiguous"),
        ("mix", "x", torch.zeros(B, CHANNELS, T, dtype=torch.float64), "x is torch.float64"),
        ("mix", "x", floats(B, CHANNELS), r"expected .* of shape \[any, any, any\]"),
        ("mix", "order", 24, "order is 24; expected a power of two, 1 to 256"),
        ("mix", "order", 512, "order is 512; expected a power of two, 1 to 256"),
        ("mix", "diagonal", floats(89), "diagonal has 89 signs for 90 channels"),
        ("mix", "y", halves(2, B, T, 96), r"of shape \[any, 3, 5, 128\]"),
        ("mix", "y", halves(3, B, T, 128), r"y is \[3, 3, 5, 128\]; expected 1 or 2 planes"),
        ("mix", "positions_last", True, r"of shape \[any, 3, 128, 8\]"),
        ("products", "tiles", TILES[:6], "tiles has 6 numbers; expected 7"),
        ("products", "tiles", [0, *TILES[1:]], r"are \(0, 90, 1\); expected 1 to 2\^31 - 1"),
        ("products", "tiles", [2**31, *TILES[1:]], r"are \(2147483648, 90, 1\)"),
        ("products", "tiles", [*TILES[:3], 12, *TILES[4:]], "ko is 12; expected a power of two"),
        ("products", "tiles", [*TILES[:4], 4, *TILES[5:]], "ki is 4; expected .* 8 to 256"),
        ("products", "tiles", [*VECTOR[:-1], 1], "signs is torch.int32"),
        ("products", "signs", ints(239), r"signs is .*\[239\]; expected .*\[240\]"),
        ("products", "shifts", ints(10), r"shifts is .*\[10\]; expected .*\[11\]"),
        ("products", "size", [1, T], r"size and windows have \(2, 15\) numbers"),
        ("products", "size", [1, 1, 0], "expected positive sizes"),
        ("products", "size", [1, 1, T - 1], "a window ends at pixel 4 of an axis that has 4"),
        ("products", "windows", [0, 0, 0, 1, 1, 2, *ONE[6:14], T - 1], "2 kernel positions"),
        ("products", "left", halves(2, B, 128, 5), r"left .* expected .*\[2, 3, 128, 8\]"),
        ("products", "left", halves(3, B, 128, 8), r"left is .*; expected 1 or 2 planes"),
        (
            "products",
            "left",
            shifted(2, B, 128, 8),
            "left does not start at a multiple of 16 bytes",
        ),
        ("products", "left", halves(3), r"left is \[3\]; expected 1 or 2 planes"),
        ("products", "right", halves(1, B, T, 128), r"right .* expected .*\[2, 3, 5, 128\]"),
        ("products", "to", floats(4, B, K + 1), r"to is .* expected .*\[any, 3, 512\]"),
        ("products", "splits_rows", 3, "to has 4 splits, which are not a multiple of the 3"),
        ("gradient", "g", floats(B, 10), "g has 10 numbers, which is not a gradient of tiles"),
        ("gradient", "g", floats(ROWS * CHANNELS, B).T, "g is not contiguous"),
        ("gradient", "diagonals", floats(175), r"diagonals .* expected .*\[176\]"),
        ("lookup", "ids", ints(B, T), "ids is torch.int32"),
        ("lookup", "right", halves(1, B, T + 1, 128), r"right .* expected .*\[any, 3, 5, 128\]"),
        ("lookup", "right", halves(3, B, T, 128), r"right is .*; expected 1 or 2 planes"),
        ("lookup", "tiles", [*TILES[:2], 9, *TILES[3:]], "signs is"),
        ("dense", "family", "hadamard", "family is 'hadamard'; expected one of .'rademacher'"),
        ("dense", "precision", "fp8", "precision is 'fp8'; expected one of .'fp32'"),
        ("dense", "g", halves(B, 100), "g is torch.bfloat16"),
        ("dense", "to", floats(1, B + 1, 13), r"to is .*expected .*\[any, 3, any\]"),
        ("gram", "x", torch.zeros(4, 6, dtype=torch.float64), "x is torch.float64"),
        ("gram", "y", floats(5, 7), r"y is .* expected .*\[any, 6\]"),
        ("gram", "x_scale", floats(5), r"x_scale is .* expected .*\[4\]"),
        ("gram", "out", floats(5, 4).T, "out is not contiguous"),
        ("norm_sums", "x", floats(B, 4, 7), r"x is .* expected .*\[3, 4, 6\]"),
        ("norm_sums", "mean", floats(5), r"mean is .* expected .*\[4\]"),
        ("norm_sums", "shift", floats(B, 5), r"shift is .* expected .*\[3, 4\]"),
        ("norm_sums", "scale", floats(4, B).T, "scale is not contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(launched, name, argument, bad, message):
    given = good()[name]
    assert argument in given
    with pytest.raises(ConfigError, match=message):
        call(name, {**given, argument: bad})
    assert not launched


@pytest.mark.parametrize("size", [64, 97])
def test_a_vector_fills_its_rows_but_for_the_last(launched, size):
    given = good()["gradient"] | {"tiles": VECTOR, "signs": ints(16), "shifts": ints(3)}
    given |= {"diagonals": floats(16 + 32)}
    call("gradient", given | {"g": floats(B, 65)})
    assert launched.pop()
    with pytest.raises(ConfigError, match=f"g has {size} numbers, which is not a gradient"):
        call("gradient", given | {"g": floats(B, size)})


@pytest.mark.parametrize("name", ["products", "lookup"])
def test_vectors_have_no_factors(launched, name):
    given = good()[name] | {"tiles": VECTOR, "signs": ints(16), "shifts": ints(3)}
    given |= {"diagonals": floats(16 + 32)} if name == "lookup" else {}
    with pytest.raises(ConfigError, match=r"a vector has no factors|expected those of a matrix"):
        call(name, given)


def test_one_device(launched):
    given = good()["dense"] | {"to": torch.zeros(1, B, 13, device="meta")}
    with pytest.raises(ConfigError, match=r"tensors are on .*cpu.*; expected them on one device"):
        gpu_ops._run("dense")("cuda", *given.values())  # the operator itself would take meta
    assert not launched


@pytest.mark.parametrize("name", ["gradient", "dense", "products"])
def test_no_samples_need_no_launch(launched, name):
    given = good()[name]
    for key, value in given.items():
        batch_first = key == "g"
        if isinstance(value, torch.Tensor) and value.dim() >= 2:
            given[key] = value[:0] if batch_first else value[:, :0]
    call(name, given)
    assert not launched


def test_nothing_to_sum_is_zero(launched):
    given = good()["norm_sums"] | {"delta": floats(B, 4, 0), "x": floats(B, 4, 0)}
    given["scale"].fill_(torch.nan), given["shift"].fill_(torch.nan)
    call("norm_sums", given)
    assert not given["scale"].any() and not given["shift"].any()
    assert not launched


def test_cuda_has_no_gram():
    with pytest.raises(ConfigError, match=r"impl is 'cuda'; .*gram has 'triton'"):
        call("gram", good()["gram"])


def test_unknown_implementation():
    with pytest.raises(ConfigError, match="impl is 'cublas'; the GPU operators have 'cuda'"):
        call("bits", good()["bits"], "cublas")


@pytest.mark.parametrize("name", gpu_ops.SCHEMAS)
def test_opcheck(launched, name):
    operator = getattr(torch.ops.pntk, f"gpu_{name}").default
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, ("cuda", *good()[name].values()), test_utils=tests)
