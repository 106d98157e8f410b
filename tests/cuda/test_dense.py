"""Dense projections of signs, with mma.sync and with wgmma, against the float64 matrix."""

import numpy as np
import pytest

from pntk.projection.bits import philox_words_numpy
from pntk.projection.cuda import PRECISIONS

from .emulated import load, needs_emulator

pytestmark = needs_emulator
BOUNDS = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 3e-3}  # relative to the gradient
SEED, STREAM = 2**63 + 5, 2**64 - 3
CASES = [  # b, p, k, splits
    (1, 1, 1, 1),
    (3, 1, 5, 2),
    (1, 31, 64, 1),
    (63, 33, 5, 1),
    (65, 127, 64, 3),
    (130, 129, 255, 1),
    (3, 128, 256, 1),
    (2, 1000, 257, 4),
    (1, 5000, 300, 3),
    (130, 1000, 1, 2),
    (64, 1004, 3, 1),
]

both = pytest.mark.parametrize("wgmma", [False, True], ids=["mma", "wgmma"])
every_precision = pytest.mark.parametrize("precision", list(PRECISIONS))


def matrix_of(p, k):
    """Return P [k, p] without its scale: bit i % 32 of word (i // 32) k4 + j."""
    k4 = -(-k // 4) * 4
    words = philox_words_numpy(SEED, STREAM, 0, -(-p // 32) * k4).reshape(-1, k4)[:, :k]
    bits = np.unpackbits(words.astype("<u4").view(np.uint8).reshape(-1, k, 4), 2, bitorder="little")
    return 1.0 - 2.0 * bits.transpose(1, 0, 2).reshape(k, -1)[:, :p]


def gradient_of(b, p, seed=0):
    return np.random.default_rng(seed).standard_normal((b, p), np.float32)


def project(gradient, k, precision, wgmma, splits=1, scale=1.0):
    """Return [splits, b, k]; checks that every entry is written, and nothing beside."""
    b, p = gradient.shape
    to = np.full(splits * b * k + 8, np.nan, np.float32)
    to[-8:] = 7
    arguments = scale, SEED, STREAM, PRECISIONS[precision], splits, wgmma, to.ctypes.data, 0, 0
    load().dense(gradient.ctypes.data, b, p, k, *arguments)
    assert (to[-8:] == 7).all()
    found = to[:-8].reshape(splits, b, k)
    assert not np.isnan(found).any()
    return found


def relative(found, gradient, matrix):
    """|found - P g| / (sqrt(k) |g|)."""
    expected = gradient.astype(np.float64) @ matrix.T
    return np.linalg.norm(found - expected) / np.linalg.norm(gradient) / len(matrix) ** 0.5


@both
@every_precision
@pytest.mark.parametrize(("b", "p", "k", "splits"), CASES)
def test_against_the_matrix(wgmma, precision, b, p, k, splits):
    gradient = gradient_of(b, p)
    scale = k**-0.5
    found = project(gradient, k, precision, wgmma, splits, scale).sum(0, dtype=np.float64) / scale
    assert relative(found, gradient, matrix_of(p, k)) < BOUNDS[precision]


@both
@every_precision
def test_signs_to_the_bit(wgmma, precision):
    # one element a sample: its row is a column of P
    p, k = 77, 260
    gradient = np.eye(p, dtype=np.float32)
    found = project(gradient, k, precision, wgmma)[0]
    np.testing.assert_array_equal(found, matrix_of(p, k).T)


@both
@every_precision
def test_rows_do_not_depend_on_the_batch(wgmma, precision):
    gradient = gradient_of(130, 700)
    whole = project(gradient, 70, precision, wgmma, splits=2)
    for samples in (slice(0, 1), slice(60, 67), slice(127, 130)):
        part = np.ascontiguousarray(gradient[samples])
        np.testing.assert_array_equal(
            project(part, 70, precision, wgmma, splits=2), whole[:, samples]
        )


@both
def test_long_sums(wgmma):
    """Products of one sign: without second sums, 1 in 40,000 is cut off."""
    p, k = 20_000, 4
    size = 1 + np.random.default_rng(1).random(p, np.float32)
    gradient = (matrix_of(p, k)[:1] * size).astype(np.float32)
    found = project(gradient, k, "fp32", wgmma)[0, 0, 0]
    assert abs(found / size.sum(dtype=np.float64) - 1) < 4e-6


@both
def test_a_sample_that_is_not_finite_stays_alone(wgmma):
    gradient = gradient_of(3, 200)
    gradient[1, 7] = np.nan
    to = np.zeros((3, 9), np.float32)
    load().dense(
        gradient.ctypes.data, 3, 200, 9, 1.0, SEED, STREAM, 0, 1, wgmma, to.ctypes.data, 0, 0
    )
    assert np.isnan(to[1]).all()
    gradient[1, 7] = 0
    np.testing.assert_array_equal(to[::2], project(gradient, 9, "fp32", wgmma)[0, ::2])


@both
def test_nothing_to_do(wgmma):
    assert project(np.empty((0, 5), np.float32), 8, "fp32", wgmma).shape == (1, 0, 8)
    assert (project(np.empty((3, 0), np.float32), 8, "fp32", wgmma, splits=2) == 0).all()


def test_unaligned_gradients():
    # 4 divides p, and the first number is not at a multiple of 16 bytes
    memory = np.zeros(4 * 129 + 4, np.float32)
    first = next(i for i in range(4) if (memory.ctypes.data + 4 * i) % 16 == 4)
    gradient = memory[first : first + 4 * 128].reshape(4, 128)
    gradient[:] = gradient_of(4, 128)
    found = project(gradient, 8, "fp32", False)[0]
    assert relative(found, gradient, matrix_of(128, 8)) < BOUNDS["fp32"]


def test_wgmma_needs_hopper(monkeypatch):
    monkeypatch.setenv("PNTK_EMULATED_CAPABILITY", "100")
    gradient = gradient_of(1, 8)
    with pytest.raises(RuntimeError, match=r"of compute capability 10\.0; only 9\.0 has it"):
        project(gradient, 8, "fp32", True)
    project(gradient, 8, "fp32", False)
