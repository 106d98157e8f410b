"""H D x of factors against float64, in any memory order."""

import math

import pytest
import torch

from pntk.kernels.mix import mix
from pntk.projection.reference import hadamard_matrix

BOUND = {1: 2**-7.9, 2: 2**-15.9}  # of a number: one rounding of each plane, and little else


def mixed(x, diagonal, order, planes, positions_last, more=0):
    b, c, t = x.shape
    channels = -(-c // max(order, 64)) * max(order, 64) + more
    positions = -(-t // 8) * 8 if positions_last else t
    shape = (channels, positions) if positions_last else (positions, channels)
    out = torch.full((planes, b, *shape), math.nan, dtype=torch.bfloat16, device=x.device)
    mix(x, diagonal, order, out, positions_last)
    return out if positions_last else out.mT


def expected(x, diagonal, order, like):
    h = torch.from_numpy(hadamard_matrix(order)).to(x.device)
    whole = torch.zeros(like.shape[1:], dtype=torch.float64, device=x.device)
    whole[:, : x.shape[1], : x.shape[2]] = x.double() * diagonal[: x.shape[1], None].double()
    blocks = whole.view(len(x), -1, order, whole.shape[2])
    return (h @ blocks).view(whole.shape)


def signs(count, device):
    return (torch.randint(0, 2, (count,)) * 2 - 1).float().to(device)


@pytest.mark.parametrize("positions_last", [True, False], ids=["left", "right"])
@pytest.mark.parametrize(
    ("order", "c", "t", "b", "planes"),
    [
        (1, 3, 7, 3, 2),
        (8, 65, 1, 3, 2),
        (16, 9, 33, 1, 1),
        (32, 63, 130, 1, 2),
        (64, 129, 1, 70, 2),
        (64, 1, 33, 2, 1),
        (128, 129, 7, 1, 2),
        (256, 300, 3, 1, 2),
    ],
)
def test_against_float64(order, c, t, b, planes, positions_last, device):
    x = torch.randn(b, c, t, device=device)
    diagonal = signs(-(-c // order) * order, device)
    found = mixed(x, diagonal, order, planes, positions_last)
    wanted = expected(x, diagonal, order, found)
    # sums that cancel are as exact as what they are sums of
    scale = wanted.abs().clamp(min=0.2)
    error = (found.double().sum(0) - wanted).abs() / scale
    assert float(error.max()) <= BOUND[planes]


def test_planes_are_the_rounded_sum_and_the_rest(device):
    """With numbers whose sums are exact, both planes are known to the bit."""
    x = torch.randint(-2000, 2000, (2, 64, 9), device=device) / 1024
    diagonal = signs(64, device)
    found = mixed(x, diagonal, 64, 2, True)
    wanted = expected(x, diagonal, 64, found).float()
    assert torch.equal(found[0], wanted.bfloat16())
    assert torch.equal(found[1], (wanted - wanted.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_any_strides_and_types(dtype, device):
    diagonal = signs(72, device)
    base = torch.randn(5, 6, 70, 2, device=device).to(dtype)
    for x in (
        base[::2, ..., 0].mT,
        base[:3, :, :, 1].permute(0, 2, 1),
        base[:3, :1, :, 0].mT.expand(3, 70, 6),
    ):
        found = mixed(x, diagonal, 8, 2, False)
        assert torch.equal(found, mixed(x.float().contiguous(), diagonal, 8, 2, False))


def test_more_padding_is_zero(device):
    x = torch.randn(1, 3, 5, device=device)
    found = mixed(x, signs(8, device), 8, 2, True, more=64)
    assert found.shape == (2, 1, 128, 8)
    assert not found[:, :, 8:].any() and not found[..., 5:].any()


def test_samples_do_not_mix(device):
    x = torch.randn(5, 20, 3, device=device)
    alone = mixed(x[2:3], signs(24, device).fill_(1), 8, 2, False)
    x[1], x[3] = math.nan, math.inf
    together = mixed(x, signs(24, device).fill_(1), 8, 2, False)
    assert torch.equal(together[:, 2], alone[:, 0])
    assert together[:, 1].isnan().any()


def test_nothing_to_do(device):
    mixed(torch.randn(0, 3, 5, device=device), signs(8, device), 8, 2, True)
    mixed(torch.randn(2, 3, 0, device=device), signs(8, device), 8, 2, False)
