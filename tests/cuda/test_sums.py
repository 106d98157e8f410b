"""Sums over positions for normalisation layers, against float64."""

import pytest
import torch

from pntk.projection.cuda import TYPES

from .emulated import load, needs_emulator

pytestmark = needs_emulator
ORDERS = {"channels first": (0, 1, 2), "channels last": (0, 2, 1), "batch last": (2, 1, 0)}


def made(shape, order, dtype, step=1, seed=0):
    """Numbers of a memory order, every step-th along each axis."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn([shape[i] * step for i in order], generator=generator).to(dtype)
    inverse = sorted(range(3), key=order.__getitem__)
    return memory.permute(inverse)[::step, ::step, ::step]


def sums(delta, x, mean):
    b, channels, _ = delta.shape
    scale, shift = (torch.full((b * channels + 3,), torch.nan) for _ in range(2))
    load().norm_sums(
        *(delta.data_ptr(), TYPES[delta.dtype], delta.stride()),
        *(x.data_ptr(), TYPES[x.dtype], x.stride(), delta.shape),
        *(mean.data_ptr(), scale.data_ptr(), shift.data_ptr(), 0, 0),
    )
    assert scale[-3:].isnan().all() and shift[-3:].isnan().all()
    return scale[:-3].view(b, channels), shift[:-3].view(b, channels)


def expected_of(delta, x, mean):
    delta, x = delta.double(), x.double()
    return (delta * (x - mean.double()[:, None])).sum(2), delta.sum(2)


@pytest.mark.parametrize("x_order", list(ORDERS))
@pytest.mark.parametrize("delta_order", list(ORDERS))
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 33, 7), (2, 65, 300), (5, 8, 1), (1, 3, 129)])
def test_against_float64(shape, delta_order, x_order):
    delta = made(shape, ORDERS[delta_order], torch.float32, step=2, seed=1)
    x = made(shape, ORDERS[x_order], torch.float32, seed=2)
    mean = torch.randn(shape[1])
    for found, expected in zip(sums(delta, x, mean), expected_of(delta, x, mean), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * shape[2] ** 0.5)


@pytest.mark.parametrize("x_type", list(TYPES))
@pytest.mark.parametrize("delta_type", list(TYPES))
@pytest.mark.parametrize("order", ["channels first", "channels last"])
def test_types(delta_type, x_type, order):
    delta = made((2, 40, 50), ORDERS[order], delta_type, seed=3)
    x = made((2, 40, 50), ORDERS[order], x_type, seed=4)
    mean = torch.randn(40)
    for found, expected in zip(sums(delta, x, mean), expected_of(delta, x, mean), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_numbers_that_are_read_again():
    # strides of zero, as expand() gives them
    delta = torch.randn(2, 1, 9).expand(2, 34, 9)
    x, mean = torch.randn(34, 9).expand(2, 34, 9), torch.zeros(34)
    for found, expected in zip(sums(delta, x, mean), expected_of(delta, x, mean), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", list(ORDERS))
def test_samples_do_not_depend_on_the_batch(order):
    delta, x = (made((5, 40, 130), ORDERS[order], torch.float32, seed=n) for n in (5, 6))
    mean = torch.randn(40)
    whole, part = sums(delta, x, mean), sums(delta[3:4], x[3:4], mean)
    for all_samples, one in zip(whole, part, strict=True):
        assert torch.equal(all_samples[3:4], one)


def test_nothing_to_do():
    for shape in ((0, 4, 3), (2, 0, 3)):
        scale, _ = sums(torch.empty(shape), torch.empty(shape), torch.zeros(shape[1]))
        assert scale.shape == shape[:2]
    scale, shift = sums(torch.empty(2, 4, 0), torch.empty(2, 4, 0), torch.zeros(4))
    assert (scale == 0).all() and (shift == 0).all()
