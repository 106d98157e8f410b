"""phi of transformed factors against the float64 matrix."""

import math

import pytest
import torch
from torch.nn import functional as F

from pntk.kernels.mix import mix
from pntk.kernels.products import products

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ONE = (1, 1, 1)


def linear(t):
    """size, and windows of kernel 1 over t positions."""
    return [1, 1, t], [0, 0, 0, *ONE, *ONE, *ONE, 1, 1, t]


def run(made, delta, a, to, planes, splits_rows=1, windows=None):
    size, flat = windows or linear(delta.shape[2])
    left, right = made.left(delta, planes), made.right(a.flatten(2), planes)
    products(left, right, made.signs, made.shifts, made.tiles, size, flat, splits_rows, to)


@pytest.mark.parametrize(
    ("k", "o", "c", "t", "b", "planes", "splits"),
    [
        (8, 3, 9, 7, 3, 2, (1, 1)),
        (8, 70, 5, 1, 1, 2, (3, 1)),
        (32, 9, 63, 33, 1, 2, (1, 3)),
        (64, 65, 9, 1, 3, 2, (1, 1)),
        (64, 9, 65, 7, 1, 1, (2, 3)),
        (512, 63, 65, 7, 1, 2, (1, 1)),
        (512, 129, 3, 33, 1, 2, (3, 1)),
        (1024, 65, 63, 130, 1, 2, (3, 2)),
        (1024, 3, 129, 1, 3, 1, (1, 3)),
        (4096, 129, 65, 33, 1, 2, (3, 1)),
        (4096, 65, 129, 130, 1, 1, (1, 3)),
        (4096, 9, 3, 1, 3, 2, (1, 1)),
        (8192, 65, 129, 7, 1, 2, (1, 3)),
        (32768, 129, 65, 7, 1, 2, (3, 2)),
    ],
)
def test_linear(k, o, c, t, b, planes, splits, make_map, into, close, device):
    made = make_map(k, (o, c), output=2)
    delta, a = torch.randn(b, o, t, device=device), torch.randn(b, c, t, device=device)
    to = into(made, math.prod(splits), b)
    run(made, delta, a, to, planes, splits[0])
    close(made, to, delta.double() @ a.double().mT, planes)


@pytest.mark.parametrize(
    ("k", "o", "c", "image", "kernel", "stride", "padding", "dilation", "planes"),
    [
        (64, 9, 8, (9,), (3,), (2,), (1,), (1,), 2),
        (512, 63, 20, (40,), (2,), (1,), (0,), (3,), 2),
        (1024, 9, 33, (7, 5), (3, 2), (1, 2), (1, 1), (2, 1), 2),
        (4096, 5, 65, (6, 6), (1, 1), (2, 3), (0, 0), (1, 1), 2),
        (4096, 65, 40, (5, 8), (3, 3), (1, 1), (1, 1), (1, 1), 1),
        (128, 3, 9, (4, 3, 5), (2, 1, 3), (1, 2, 1), (1, 0, 2), (2, 1, 2), 2),
        (64, 3, 8, (3, 3), (1, 1), (1, 1), (1, 2), (1, 1), 2),
    ],
)
def test_convolutions(
    k, o, c, image, kernel, stride, padding, dilation, planes, make_map, into, close, device
):
    shape, b = (o, c, *kernel), 2
    made = make_map(k, shape)
    assert made.layout.per_position
    x = torch.randn(b, c, *image, device=device)
    weight = torch.zeros(shape, dtype=torch.float64, device=device, requires_grad=True)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    out = CONV[len(image)](x.double(), weight, **options)
    delta = torch.randn(out.shape, device=device)
    gradient = torch.stack(
        [
            torch.autograd.grad(one, weight, back.double(), retain_graph=True)[0]
            for one, back in zip(out, delta, strict=True)
        ]
    )
    missing = (1,) * (3 - len(image))
    flat = [0] * len(missing) + list(padding)
    for sizes in (kernel, stride, dilation, out.shape[2:]):
        flat += [*missing, *sizes]
    to = into(made, 3, b)
    run(made, delta.flatten(2), x, to, planes, windows=([*missing, *image], flat))
    close(made, to, gradient, planes)


def test_few_channels_stand_together(make_map, into, close, device):
    """Where positions stand together, their columns arrive side by side: one kernel position."""
    shape = (9, 3, 2, 2)
    made = make_map(1024, shape)
    assert not made.layout.per_position
    x, delta = torch.randn(2, 3, 4, 5, device=device), torch.randn(2, 9, 12, device=device)
    patches = F.unfold(x, (2, 2)).view(2, 3, 4, 12)
    columns = patches.transpose(1, 2).reshape(2, 12, 12)  # position outer, channel inner
    to = into(made, 1, 2)
    run(made, delta, columns, to, 2)
    gradient = torch.einsum("bot,bcpt->bocp", delta.double(), patches.double())
    close(made, to, gradient.reshape(2, *shape))


def test_through_mix(make_map, into, close, device):
    made = make_map(1024, (40, 20))
    t, b = 9, 2
    delta, a = torch.randn(b, 40, t, device=device), torch.randn(b, t, 20, device=device)
    left = torch.full((2, b, 64, 16), math.nan, dtype=torch.bfloat16, device=device)
    right = torch.full((2, b, t, 64), math.nan, dtype=torch.bfloat16, device=device)
    mix(delta, made.row_diagonal, 32, left, True)
    mix(a.mT, made.column_diagonal, 32, right, False)
    to = into(made, 2, b)
    products(left, right, made.signs, made.shifts, made.tiles, *linear(t), 1, to)
    close(made, to, delta.double() @ a.double())


def test_samples_do_not_meet(make_map, into, device):
    """Rows are the same to the bit in any company, even next to NaN."""
    made = make_map(512, (40, 33))
    delta, a = torch.randn(3, 40, 11, device=device), torch.randn(3, 33, 11, device=device)
    alone, together = into(made, 2, 1), into(made, 2, 3)
    run(made, delta[1:2], a[1:2], alone, 2)
    a[0], delta[2, 3, 4] = math.nan, math.inf
    run(made, delta, a, together, 2)
    assert torch.equal(together[:, 1], alone[:, 0])
    assert not together[:, [0, 2]].sum(0).isfinite().any()


def test_more_splits_than_work(make_map, into, close, device):
    made = make_map(64, (9, 8))
    delta, a = torch.randn(1, 9, 3, device=device), torch.randn(1, 8, 3, device=device)
    to = into(made, 6, 1)
    run(made, delta, a, to, 2, splits_rows=3)
    close(made, to, delta.double() @ a.double().mT)
    assert to.isfinite().all()


def test_nothing_to_do(make_map, into, device):
    made = make_map(64, (9, 8))
    to = into(made, 1, 2)
    run(made, torch.randn(2, 9, 0, device=device), torch.randn(2, 8, 0, device=device), to, 2)
    assert not to.any()
    empty = torch.randn(0, 9, 3, device=device), torch.randn(0, 8, 3, device=device)
    run(made, *empty, into(made, 1, 0), 2)
