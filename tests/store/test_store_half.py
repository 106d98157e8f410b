import h5py
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pntk.errors import StoreError
from pntk.store import FeatureStore, RowWriter
from pntk.store.half import decode, encode

MOST = np.finfo(np.float32).max
LEAST = np.float32(2.0**-149)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# numbers of one row that differ by many powers of two
spread = st.builds(
    lambda digits, exponent: float(np.ldexp(np.float32(digits), exponent)),
    st.floats(-1.0, 1.0, width=32),
    st.integers(-60, 0),
)
shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
rows_of_numbers = st.one_of(
    arrays(np.float32, shapes, elements=finite), arrays(np.float32, shapes, elements=spread)
)


def there_and_back(rows) -> np.ndarray:
    return decode(*encode(np.array(rows, np.float32))).numpy()


@given(rows=rows_of_numbers)
@example(rows=np.array([[MOST, -MOST, 1, LEAST]], np.float32))
@example(rows=np.array([[LEAST, -LEAST, 0]], np.float32))
def test_bounds(rows):
    wide = rows.astype(np.float64)
    error = np.abs(there_and_back(rows) - wide)
    largest = np.abs(wide).max(axis=1, keepdims=True)
    large = np.abs(wide) >= 2.0**-28 * largest
    assert (error <= 2.0**-11 * np.abs(wide))[large].all()
    assert (error <= 2.0**-39 * largest).all(where=~large)


@pytest.mark.parametrize(("entry", "bits"), [(2.0**-28 * (1 + 2**-11), 11), (2.0**-29, 20)])
def test_how_far_eleven_bits_reach(entry, bits):
    """Down to 2^-28 of the largest entry, where that is a power of two."""
    found = there_and_back([[1.0, entry]])[0, 1]
    assert abs(found - entry) <= 2.0**-bits * entry


def test_fewer_bits_below():
    entry = 2.0**-29 * (1 + 2.0**-10)
    assert abs(there_and_back([[1.0, entry]])[0, 1] - entry) > 2.0**-11 * entry


@given(rows=rows_of_numbers)
def test_rows_are_on_their_own(rows):
    features, scales = encode(rows)
    for j in range(len(rows)):
        one, scale = encode(rows[j : j + 1])
        assert one.tobytes() == features[j].tobytes() and scale == scales[j]


@given(rows=rows_of_numbers)
def test_scales_are_powers_of_two_that_use_the_range(rows):
    features, scales = encode(rows)
    assert (features.dtype, scales.dtype, scales.shape) == (np.float16, np.float32, (len(rows),))
    digits, exponents = np.frexp(scales)
    assert (digits == 0.5).all() and (exponents > -126).all()  # no subnormal scale
    top = np.abs(features.astype(np.float64)).max(axis=1)
    usual = (exponents > -125) & (rows != 0).any(axis=1)
    assert ((top >= 2**14) & (top <= 2**15))[usual].all()


@given(rows=rows_of_numbers)
@example(rows=np.array([[1 - 2.0**-20, 2.0**-39]], np.float32))  # the second scale is another
def test_what_is_held_in_eleven_bits_stays(rows):
    once = there_and_back(rows)
    large = np.abs(once) >= 2.0**-28 * np.abs(once).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(there_and_back(once)[large], once[large])


def test_numbers_of_eleven_bits_are_exact():
    rows = np.array([[2047, -1025, 3, 1, 0]], np.float32)
    for exponent in (-149, -130, -126, -20, 0, 50, 117):
        scaled = np.ldexp(rows, exponent)
        np.testing.assert_array_equal(there_and_back(scaled), scaled)


def test_zeros_keep_their_sign():
    row = there_and_back([[0.0, -0.0], [1.0, -0.0]])
    assert np.signbit(row).tolist() == [[False, True], [False, True]] and not row[:, 1].any()


def test_subnormal_rows_are_exact():
    rows = np.array([[LEAST, 3 * LEAST, -2047 * LEAST]], np.float32)
    np.testing.assert_array_equal(there_and_back(rows), rows)


@pytest.mark.parametrize("largest", [MOST, np.nextafter(MOST, 0), 2.0**127])
def test_the_largest_numbers_stay_finite(largest):
    row = there_and_back([[largest, -largest, 1.0]])[0]
    assert np.isfinite(row).all()
    np.testing.assert_allclose(row[:2], [largest, -largest], rtol=2.0**-11)


def test_infinity_and_nan_stay_and_spoil_nothing():
    row = there_and_back([[np.inf, -np.inf, np.nan, 1.5, MOST], [np.inf, 0, 0, 1, 2.0**-20]])
    assert row[0, :2].tolist() == [np.inf, -np.inf] and np.isnan(row[0, 2])
    assert row[1].tolist() == [np.inf, 0, 0, 1, 2.0**-20]
    assert np.isfinite(row[0, 4])
    assert np.isnan(there_and_back([[np.nan, np.nan]])).all()


def test_arrays_that_are_read_only():
    rows = np.ones((2, 3), np.float32)
    rows.flags.writeable = False
    assert (decode(*encode(rows)) == 1).all()


@pytest.mark.parametrize("width", [1, 6, 63])
def test_store(tmp_path, make_header, values, width):
    header = make_header(dtype="float16", width=width)
    rows, columns = values(header)
    with RowWriter.open(tmp_path / "s.h5", header) as writer:
        writer.write([9, *range(9)], torch.from_numpy(rows), columns, skipped=np.arange(10) == 3)
    store = FeatureStore(tmp_path / "s.h5")
    expected = there_and_back(rows)
    expected[3] = 0
    assert store.dtype == torch.float32 == store[0].dtype
    np.testing.assert_array_equal(store.numpy(), np.roll(expected, -1, axis=0))
    assert store.skipped.tolist() == [2] and store.verify().ok
    with h5py.File(store.path) as file:
        assert (file["features"].dtype, file["scales"].dtype) == (np.float16, np.float32)
        np.testing.assert_array_equal(
            file["features"][:].astype(np.float32) * file["scales"][:][:, None], store.numpy()
        )


def test_rows_of_another_type(tmp_path, make_header):
    with RowWriter.open(tmp_path / "s.h5", make_header(dtype="float16", columns={})) as writer:
        for kind in (np.float16, np.float64):
            message = f"rows are {np.dtype(kind)}, the store holds float16, made of float32; conv"
            with pytest.raises(StoreError, match=message):
                writer.write([0], np.ones((1, 6), kind))
