import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pntk.errors import ConfigError, PntkWarning
from pntk.projection import bits

needs_native = pytest.mark.skipif(not bits.has_native(), reason=str(bits.native_error()))

# Random123, tests/kat_vectors, philox 4x32 10: counter, key, output, least word first.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def native_words(seed, stream, start, count):
    out = np.full(count, 0xDEADBEEF, np.uint32)
    bits.native_module().philox_words(out, seed, stream, *divmod(start, 4))
    return out


def torch_words(seed, stream, start, count):
    return bits.philox_words_torch(seed, stream, start, count, "cpu").numpy()


WORDS = [
    pytest.param(bits.philox_words_numpy, id="numpy"),
    pytest.param(torch_words, id="torch"),
    pytest.param(native_words, id="native", marks=needs_native),
]


@pytest.fixture
def fresh_loader():
    bits._load_native.cache_clear()
    yield
    bits._load_native.cache_clear()


@pytest.fixture
def no_native(monkeypatch):
    monkeypatch.setattr(bits, "native_module", lambda: None)


def pair(low, high):
    return low | high << 32


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(words, counter, key, expected):
    seed, block, stream = pair(*key), pair(*counter[:2]), pair(*counter[2:])
    assert tuple(words(seed, stream, 4 * block, 4).tolist()) == expected


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**64 - 1),
    start=st.integers(0, 2**66 - 600) | st.integers(0, 20),
    count=st.integers(0, 600),
)
def test_words_are_the_same_everywhere(seed, stream, start, count):
    expected = bits.philox_words_numpy(seed, stream, start, count)
    assert expected.shape == (count,)
    assert expected.dtype == np.uint32
    np.testing.assert_array_equal(torch_words(seed, stream, start, count), expected)
    found = bits.words(seed, stream, start, count, "cpu")
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), expected)
    if bits.has_native():
        np.testing.assert_array_equal(native_words(seed, stream, start, count), expected)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("boundary", [0, 4 * 2**32, 4 * 2**63])
def test_words_do_not_depend_on_how_they_are_cut(words, boundary):
    # Around block 2^32 the carry goes into the second counter word; around 2^63 int64 wraps.
    start = max(boundary - 301, 0)
    whole = words(7, 11, start, 602)
    assert len(np.unique(whole)) == 602
    for cut in (1, 2, 3, 4, 63, 129, 301, 601):
        parts = [words(7, 11, start, cut), words(7, 11, start + cut, 602 - cut)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_numpy_chunks_join():
    count = bits._NUMPY_CHUNK + 9
    whole = bits.philox_words_numpy(1, 2, 3, count)
    np.testing.assert_array_equal(whole, torch_words(1, 2, 3, count))


@pytest.mark.parametrize("words", WORDS)
def test_the_stream_ends_with_the_last_block(words):
    last = words(5, 6, 2**66 - 3, 3)
    np.testing.assert_array_equal(last, words(5, 6, 2**66 - 4, 4)[1:])


def expected_signs(seed, stream, start, count):
    # The definition, one bit at a time.
    first = start // 32
    found = bits.philox_words_numpy(seed, stream, first, (start + count) // 32 - first + 1)
    values = [int(word) for word in found]
    return [1 - 2 * (values[n // 32 - first] >> n % 32 & 1) for n in range(start, start + count)]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**64 - 1),
    start=st.integers(0, 300) | st.integers(0, 2**71 - 9000),
    count=st.integers(0, 300) | st.integers(4000, 4200),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int8, torch.bfloat16]),
)
def test_signs_are_the_bits_of_the_words(seed, stream, start, count, dtype):
    found = bits.signs(seed, stream, start, count, dtype=dtype)
    assert found.dtype == dtype
    assert found.tolist() == expected_signs(seed, stream, start, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8, torch.float16])
@pytest.mark.parametrize("start", [0, 1, 31, 32, 63, 129, 128 * 2**32 - 77])
@pytest.mark.parametrize("count", [0, 1, 63, 129, 4097])
def test_signs_without_the_extension(no_native, dtype, start, count):
    found = bits.signs(3, 4, start, count, dtype=dtype)
    assert found.dtype == dtype
    assert found.tolist() == expected_signs(3, 4, start, count)


def test_words_without_the_extension(no_native):
    found = bits.words(3, 4, 5, 6)
    assert found.dtype == torch.int64
    assert found.tolist() == bits.philox_words_numpy(3, 4, 5, 6).tolist()


def test_unpacking_of_other_devices():
    # The path of a GPU, run on the CPU: high bits set, so that sign extension would show.
    found = bits._unpack(torch.tensor([0xFFFFFFFF, 0x80000000, 0x01020384]))
    expected = [word >> n & 1 for word in (0xFFFFFFFF, 0x80000000, 0x01020384) for n in range(32)]
    assert found.tolist() == expected


def test_other_devices_make_no_cpu_tensor():
    assert bits.words(1, 2, 3, 129, "meta").shape == (129,)
    found = bits.signs(1, 2, 3, 129, dtype=torch.float16, device="meta")
    assert (found.shape, found.dtype, found.device.type) == ((129,), torch.float16, "meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("start", [0, 61, 128 * 2**32 - 77])
def test_cuda_is_the_same(start):
    words = bits.words(3, 2**63 + 4, start, 1001, "cuda")
    assert torch.equal(words.cpu(), bits.words(3, 2**63 + 4, start, 1001))
    signs = bits.signs(3, 4, start, 10_001, device="cuda")
    assert torch.equal(signs.cpu(), bits.signs(3, 4, start, 10_001))


def test_signs_balance():
    # Mean of n fair signs: standard deviation 1/sqrt(n), so 5 of them; the same for the product
    # of neighbouring bits, of neighbouring streams, and of neighbouring seeds.
    n = 1 << 18
    base = bits.signs(0, 0, 0, n)
    others = [base.roll(1), bits.signs(0, 1, 0, n), bits.signs(1, 0, 0, n)]
    for mean in (base.mean(), *((base * other).mean() for other in others)):
        assert abs(mean.item()) < 5 / n**0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # hashlib.blake2b(b"pntk1|hadamard|4096|S|0|layer1.0.conv1.weight", digest_size=8)
        # .digest() read from its last byte to its first
        (("hadamard", 4096, "S", 0, "layer1.0.conv1.weight"), 0xA0F271D43DAF1C07),
        # b"pntk1|rademacher|512|sign|9|fc.bias"
        (("rademacher", 512, "sign", 9, "fc.bias"), 0x12127673A9D2C9B4),
        # "pntk1|hadamard|64|rho|2|größe|w" in UTF-8: a name may hold anything
        (("hadamard", 64, "rho", 2, "größe|w"), 0x7AAEF4D0C7CFA616),
    ],
)
def test_stream_id_is_fixed(arguments, expected):
    assert bits.stream_id(*arguments) == expected


@pytest.mark.parametrize(
    ("family", "role", "message"),
    [
        ("a|b", "S", r"family is 'a\|b'; it must not contain '\|': rename it"),
        ("a", "S|T", r"role is 'S\|T'; it must not contain '\|': rename it"),
    ],
)
def test_stream_id_refuses_ambiguous_text(family, role, message):
    with pytest.raises(ConfigError, match=message):
        bits.stream_id(family, 8, role, 0, "w")


@pytest.mark.parametrize(
    "call",
    [bits.philox_words_numpy, bits.philox_words_torch, bits.words, bits.signs],
    ids=lambda call: call.__name__,
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 0, 1), r"seed is -1; it must be in \[0, 2\^64\): take it modulo"),
        ((2**64, 0, 0, 1), r"seed is 18446744073709551616; it must be in \[0, 2\^64\)"),
        ((0, 2**64, 0, 1), r"stream is 18446744073709551616; it must be in \[0, 2\^64\)"),
        ((0, 0, -2, 1), r"start is -2; it must be 0 or more"),
        ((0, 0, 0, -3), r"count is -3; it must be 0 or more"),
        ((0, 0, 2**71, 1), r"start \+ count is 2361183241434822606849; a stream ends at \d+: use"),
        ((0, 0, 0.5, 1), r"start is 0.5 \(float\); it must be an integer: use int\(\)"),
    ],
)
def test_arguments_out_of_range(call, arguments, message):
    with pytest.raises(ConfigError, match=message):
        call(*arguments)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_signs_refuse_unsigned_types(dtype):
    with pytest.raises(ConfigError, match=f"dtype is {dtype}; signs need one that holds -1"):
        bits.signs(0, 0, 0, 1, dtype=dtype)


@needs_native
class TestNativeChecks:
    def test_block_range(self):
        fill = bits.native_module().philox_words
        fill(np.empty(4, np.uint32), 0, 0, 2**64 - 1, 0)
        with pytest.raises(ValueError, match="the stream ends at block"):
            fill(np.empty(5, np.uint32), 0, 0, 2**64 - 1, 0)
        with pytest.raises(ValueError, match="skip is 4; it must be below 4"):
            fill(np.empty(1, np.uint32), 0, 0, 0, 4)
        with pytest.raises(ValueError, match="skip is 128; it must be below 128"):
            bits.native_module().philox_signs(np.empty(1, np.int8), 0, 0, 0, 128)

    @pytest.mark.parametrize(
        "out",
        [np.empty(4, np.float64), np.empty(8, np.uint32)[::2], [0, 0, 0, 0]],
        ids=["type", "stride", "list"],
    )
    def test_buffers_are_not_converted(self, out):
        # A converted copy would be filled and thrown away.
        with pytest.raises(TypeError, match="incompatible function arguments"):
            bits.native_module().philox_words(out, 0, 0, 0, 0)

    def test_read_only_buffer(self):
        out = np.empty(4, np.uint32)
        out.flags.writeable = False
        with pytest.raises(ValueError, match="not writeable"):
            bits.native_module().philox_words(out, 0, 0, 0, 0)

    def test_nothing_is_written_outside(self):
        for dtype in (np.float32, np.float64, np.int8):
            guarded = np.full(400, 9, dtype)
            bits.native_module().philox_signs(guarded[7:-7], 0, 0, 0, 5)
            assert (guarded[:7] == 9).all()
            assert (guarded[-7:] == 9).all()
            assert (abs(guarded[7:-7]) == 1).all()


class TestLoading:
    def test_disabled_by_the_environment(self):
        script = (
            "import sys\n"
            "import torch\n"
            "from pntk.projection import bits\n"
            "assert not bits.has_native()\n"
            "assert 'pntk._C' not in sys.modules\n"
            "print(bits.native_error())\n"
            "print(*bits.signs(0, 0, 3, 5, dtype=torch.int8).tolist())\n"
            "print(*bits.words(0, 0, 1, 1).tolist())\n"
        )
        environment = {**os.environ, "PNTK_DISABLE_NATIVE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        error, signs, words = done.stdout.splitlines()
        assert error == "turned off by PNTK_DISABLE_NATIVE=1"
        assert signs == "1 -1 1 -1 -1"  # bits 3 to 7 of 0x6627e8d5
        assert words == str(0xE169C58D)

    def test_unknown_switch(self, fresh_loader, monkeypatch):
        monkeypatch.setenv("PNTK_DISABLE_NATIVE", "yes")
        with pytest.raises(ConfigError, match="PNTK_DISABLE_NATIVE is 'yes'; set it to 1, to 0"):
            bits.has_native()

    def test_not_built(self, fresh_loader, monkeypatch):
        monkeypatch.delenv("PNTK_DISABLE_NATIVE", raising=False)
        monkeypatch.setattr(bits.importlib, "import_module", missing("pntk._C"))
        assert not bits.has_native()
        assert bits.native_error().startswith("pntk._C was not built: install with a C++17")

    @pytest.mark.parametrize(
        "error",
        [
            ModuleNotFoundError("No module named 'numpy'", name="numpy"),
            ImportError("undefined symbol: foo"),
            RuntimeError("module initialised twice"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_broken(self, fresh_loader, monkeypatch, error):
        monkeypatch.delenv("PNTK_DISABLE_NATIVE", raising=False)
        monkeypatch.setattr(bits.importlib, "import_module", raiser(error))
        with pytest.warns(PntkWarning, match="is there and cannot be imported"):
            assert not bits.has_native()
        assert str(error) in bits.native_error()
        assert "reinstall pntk" in bits.native_error()

    def test_loaded(self, fresh_loader, monkeypatch):
        monkeypatch.delenv("PNTK_DISABLE_NATIVE", raising=False)
        module = types.ModuleType("pntk._C")
        module.level = lambda: "avx2"
        monkeypatch.setattr(bits.importlib, "import_module", lambda name: module)
        assert bits.native_module() is module
        assert bits.native_error() is None


def raiser(error):
    def import_module(name):
        raise error

    return import_module


def missing(name):
    return raiser(ModuleNotFoundError(f"No module named {name!r}", name=name))
