"""The emulator against the documented (row, column) of every register, and its complaints.

The formulas here are those of the PTX ISA, written for whole arrays; the emulator's are loops.
"""

import ctypes

import numpy as np
import pytest
import torch

from .emulated import EMULATOR, build, needs_emulator

pytestmark = needs_emulator
LANES = np.arange(32)
GROUP, LANE = LANES // 4, LANES % 4


@pytest.fixture(scope="module")
def probes():
    library = ctypes.CDLL(str(build("probes.so", [EMULATOR / "probes.cpp"])))

    def call(name, a, b, to, n=0, blocks=1):
        function = getattr(library, f"probe_{name}")
        function.restype = ctypes.c_char_p
        function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int, ctypes.c_uint]
        pointers = [None if x is None else x.ctypes.data for x in (a, b, to)]
        message = function(*pointers, n, blocks)
        if message is not None:
            raise RuntimeError(message.decode())
        return to

    return call


def integers(seed, *shape):
    # Small integers: exact in every type, and every order of addition.
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def as_bf16(x):
    return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)


def pairs(x):
    """Pack [..., 2] numbers as bfloat16, the first one low."""
    bits = as_bf16(np.ascontiguousarray(x)).astype(np.uint32)
    return bits[..., 0] | bits[..., 1] << 16


def a_registers(a, tf32):
    """Return [32, 4] registers of a [16, 16 or 8] (PTX ISA, mma.m16n8k16 and m16n8k8)."""
    i = np.arange(4)
    rows = GROUP[:, None] + 8 * (i % 2)
    if tf32:
        return a[rows, LANE[:, None] + 4 * (i // 2)].view(np.uint32)
    columns = LANE[:, None] * 2 + 8 * (i // 2)
    return pairs(np.stack([a[rows, columns], a[rows, columns + 1]], axis=-1))


def d_place(columns):
    """Return the rows and columns [32, columns / 2] of the registers of d [16, columns]."""
    i = np.arange(columns // 2)
    rows = GROUP[:, None] + 8 * (i % 4 // 2)
    return rows, LANE[:, None] * 2 + i % 2 + i // 4 * 8


@pytest.mark.parametrize("tf32", [False, True])
def test_mma(probes, tf32):
    k = 8 if tf32 else 16
    a, b, c = integers(0, 16, k), integers(1, k, 8), integers(2, 16, 8)
    i = np.arange(2)
    if tf32:
        b_registers = b[LANE[:, None] + 4 * i, GROUP[:, None]].view(np.uint32)
    else:
        rows = LANE[:, None] * 2 + 8 * i
        column = np.broadcast_to(GROUP[:, None], rows.shape)
        b_registers = pairs(np.stack([b[rows, column], b[rows + 1, column]], axis=-1))
    place = d_place(8)
    found = probes(
        "mma_tf32" if tf32 else "mma_bf16",
        np.ascontiguousarray(a_registers(a, tf32)),
        np.ascontiguousarray(b_registers),
        np.ascontiguousarray(c[place]),
    )
    np.testing.assert_array_equal(found, (c + a @ b)[place])


def test_tensor_cores_cut_off(probes):
    # 1 + 2^-24 + 2^-25 is nearest to 1 + 2^-23.
    a, b = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    a[LANE == 0, 0] = pairs(np.ones(2, np.float32))
    b[LANE == 0, 0] = pairs(np.array([2.0**-24, 2.0**-25], np.float32))
    for start, expected in ((1, 1), (-1, -1 + 2.0**-23)):
        to = np.full((32, 4), start, np.float32)
        np.testing.assert_array_equal(probes("mma_bf16", a, b, to)[:, :2], expected)


def test_tf32_bits_that_do_not_count(probes):
    a = np.full((32, 4), 0x3F801FFF, np.uint32)  # 1.0, and bits that tf32 has not
    b = np.full((32, 2), 0x3F800000, np.uint32)
    found = probes("mma_tf32", a, b, np.zeros((32, 4), np.float32))
    np.testing.assert_array_equal(found, 8.0)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(probes, transposed):
    numbers = np.random.default_rng(3).integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    found = probes(
        "ldmatrix_trans" if transposed else "ldmatrix", None, numbers, np.empty((32, 4), np.float32)
    )
    matrices = numbers.transpose(0, 2, 1) if transposed else numbers
    pair = matrices.reshape(4, 8, 4, 2).astype(np.uint32)
    expected = (pair[..., 0] | pair[..., 1] << 16).reshape(4, 32).T
    np.testing.assert_array_equal(found.view(np.uint32), expected)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("step", [0, 3])
def test_wgmma(probes, tf32, columns, step):
    k = 8 if tf32 else 16
    a, b = integers(4, 64, k), integers(5, columns, 4 * k)
    c = integers(6, 64, columns)
    registers = np.concatenate([a_registers(a[16 * w : 16 * w + 16], tf32) for w in range(4)])
    rows, place = d_place(columns)
    place = np.concatenate([rows + 16 * w for w in range(4)]), np.tile(place, (4, 1))
    shared = b if tf32 else np.ascontiguousarray(as_bf16(b))
    name = f"wgmma_{'tf32' if tf32 else 'bf16'}_{columns}"
    found = probes(name, np.ascontiguousarray(registers), shared, c[place].copy(), n=step)
    expected = c + a @ b[:, step * k : (step + 1) * k].T
    np.testing.assert_array_equal(found, expected[place])


class TestAsynchrony:
    def test_copies(self, probes):
        numbers = np.arange(128, dtype=np.float32)
        found = probes("copy", None, numbers, np.empty(256, np.float32))
        expected = np.concatenate([numbers, numbers])
        expected[12:16] = 0  # lane 3's is not valid
        np.testing.assert_array_equal(found, expected)

    def test_what_is_not_waited_for_is_poison(self, probes):
        numbers = np.arange(128, dtype=np.float32)
        found = probes("copy", None, numbers, np.empty(256, np.float32), n=1)
        assert not np.isnan(found[:128]).any()
        assert np.isnan(found[128:]).all()

    def test_products_come_with_the_wait(self, probes):
        a, b = np.full((128, 4), 0x3F803F80, np.uint32), np.full((64, 64), 0x3F80, np.uint16)
        to = np.zeros((128, 32), np.float32)
        assert (probes("wgmma_bf16_64", a, b, to.copy(), n=8) == 0).all()
        assert (probes("wgmma_bf16_64", a, b, to.copy()) == 16).all()
        with pytest.raises(RuntimeError, match="no wgmma_fence since the last wgmma_commit"):
            probes("wgmma_bf16_64", a, b, to, n=4)


class TestThreads:
    def test_sum(self, probes):
        numbers = integers(7, 5, 256)
        found = probes("sum", None, numbers, np.empty(5, np.float32), blocks=5)
        np.testing.assert_array_equal(found, numbers.sum(1))

    def test_a_missing_barrier_shows(self, probes):
        found = probes("sum", None, np.ones((5, 256), np.float32), np.empty(5, np.float32), 1, 5)
        assert np.isnan(found).any()

    @pytest.mark.parametrize("times", [1, 2, 7])
    def test_named_barriers(self, probes, times):
        numbers = integers(8, times, 64)
        found = probes("pipeline", None, numbers, np.empty(64, np.float32), n=times)
        np.testing.assert_array_equal(found, numbers.sum(0)[::-1])

    @pytest.mark.parametrize(
        ("name", "n", "message"),
        [
            ("pipeline", -1, "probe, block 0,0,0: deadlock: 64 threads wait; 64 are at barrier 1"),
            ("pipeline", -2, r"thread \d+: barrier 1 waits for \d+ threads, not \d+"),
            ("pipeline", -3, r"is at __syncthreads in line \d+ while others wait at __sync"),
            ("ldmatrix", 4, "ldmatrix: a shared memory address that is no multiple of 16"),
            ("ldmatrix", 768, "ldmatrix: outside of the dynamic shared memory"),
            ("copy", 2, "cp_async16: a global address that is no multiple of 16"),
            ("overrun", 0, "writes beyond its 64 bytes of shared memory"),
            ("threads", 0, "33 threads a block; expected whole warps"),
            ("shared", 0, "300000 bytes of shared memory are too many"),
        ],
    )
    def test_complaints(self, probes, name, n, message):
        numbers = np.zeros(1024, np.float32)
        with pytest.raises(RuntimeError, match=message):
            probes(name, numbers, numbers, np.zeros(1024, np.float32), n)
        # and the next kernel runs
        assert probes("sum", None, np.ones(256, np.float32), np.empty(1, np.float32)) == 256
