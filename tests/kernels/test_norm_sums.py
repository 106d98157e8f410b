"""Sums of a norm layer against float64, in any memory order."""

import math

import pytest
import torch

from pntk.kernels.norm_sums import norm_sums


def sums(delta, x, mean):
    scale = torch.full(delta.shape[:2], math.nan, device=delta.device)
    shift = scale.clone()
    norm_sums(delta, x, mean, scale, shift)
    return scale, shift


def memory_orders(shape, device):
    n, c, length = shape
    yield torch.randn(shape, device=device)
    yield torch.randn(n, length, c, device=device).mT
    yield torch.randn(length, c, n, device=device).permute(2, 1, 0)
    yield torch.randn(2 * n, c, 3 * length, device=device)[::2, :, 1::3]
    yield torch.randn(n, c, 1, device=device).expand(shape)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 9, 33), (2, 63, 300), (1, 129, 7)], ids=str)
def test_against_float64(shape, device):
    mean = torch.randn(shape[1], device=device)
    deltas, xs = list(memory_orders(shape, device)), list(memory_orders(shape, device))
    for delta, x in [*zip(deltas, xs, strict=True), *zip(deltas[1:], xs[:-1], strict=True)]:
        scale, shift = sums(delta, x, mean)
        terms = delta.double() * (x.double() - mean[:, None].double())
        for found, wanted in ((scale, terms), (shift, delta.double())):
            error = (found - wanted.sum(2)).abs() / wanted.abs().sum(2)
            assert float(error.max()) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_types(dtype, device):
    delta, x = torch.randn(2, 2, 5, 40, device=device)
    mean = torch.randn(5, device=device)
    mixed = sums(delta.to(dtype), x, mean)
    for found, wanted in zip(mixed, sums(delta.to(dtype).float(), x, mean), strict=True):
        assert torch.equal(found, wanted)


def test_samples_do_not_meet(device):
    delta, x = torch.randn(2, 3, 9, 40, device=device)
    mean = torch.randn(9, device=device)
    alone = sums(delta[1:2], x[1:2], mean)
    delta[0], x[2] = math.nan, math.inf
    for found, wanted in zip(sums(delta, x, mean), alone, strict=True):
        assert torch.equal(found[1], wanted[0])


def test_nothing_to_do(device):
    delta = torch.zeros(2, 3, 0, device=device)
    assert not any(found.any() for found in sums(delta, delta, torch.ones(3, device=device)))
