"""phi of whole gradients against the float64 matrix."""

import math

import pytest
import torch

from pntk.kernels.gradient import gradient


def run(made, g, to):
    gradient(g.flatten(1), made.diagonals, made.signs, made.shifts, made.tiles, to)


@pytest.mark.parametrize(
    ("k", "shape", "b", "splits"),
    [
        (8, (3, 9), 3, 1),
        (8, (65, 3, 2), 1, 3),
        (16, (129, 20), 1, 1),
        (32, (63, 9), 3, 3),
        (64, (9, 65), 1, 1),
        (64, (70, 63, 2), 1, 3),
        (128, (33, 40), 1, 1),
        (512, (65, 129), 1, 3),
        (512, (9, 3, 3, 3), 3, 1),
        (1024, (63, 17, 3), 1, 3),
        (2048, (40, 3, 3, 3), 1, 1),
        (4096, (129, 65), 1, 3),
        (4096, (65, 33, 3), 1, 1),
        (4096, (9, 3, 5, 5), 3, 1),
        (8192, (65, 129), 1, 3),
        (32768, (129, 70, 2), 1, 2),
        (65536, (130, 100), 1, 1),
    ],
)
def test_matrices(k, shape, b, splits, make_map, into, close, device):
    made = make_map(k, shape, output=1)
    g = torch.randn(b, *shape, device=device)
    to = into(made, splits, b)
    run(made, g, to)
    close(made, to, g)


@pytest.mark.parametrize(
    ("k", "shape"),
    [
        (8, ()),
        (8, (1, 3, 21)),
        (64, (3,)),
        (512, (129,)),
        (1024, (1, 65)),
        (4096, (5000,)),
        (8192, (9000,)),
    ],
)
def test_vectors(k, shape, make_map, into, close, device):
    made = make_map(k, shape)
    assert made.layout.vector
    g = torch.randn(2, max(1, math.prod(shape)), device=device)
    to = into(made, 3, 2)
    run(made, g, to)
    close(made, to, g)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_types(dtype, make_map, into, device):
    made = make_map(512, (20, 30))
    g = torch.randn(2, 20, 30, device=device).to(dtype)
    half, single = into(made, 1, 2), into(made, 1, 2)
    run(made, g, half)
    run(made, g.float(), single)
    assert torch.equal(half, single)


def test_samples_do_not_meet(make_map, into, device):
    made = make_map(512, (40, 33))
    g = torch.randn(3, 40, 33, device=device)
    alone, together = into(made, 2, 1), into(made, 2, 3)
    run(made, g[1:2], alone)
    g[0], g[2, 3, 4] = math.nan, math.inf
    run(made, g, together)
    assert torch.equal(together[:, 1], alone[:, 0])
    assert not together[:, [0, 2]].sum(0).isfinite().any()
