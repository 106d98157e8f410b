"""phi of an embedding's gradient against the float64 matrix."""

import math

import pytest
import torch

from pntk.kernels.lookup import lookup


def run(made, ids, delta, to, planes):
    right = made.right(delta.mT, planes)
    lookup(ids, right, made.diagonals, made.signs, made.shifts, made.tiles, to)


def scattered(ids, delta, rows):
    gradient = torch.zeros(len(ids), rows, delta.shape[2], dtype=torch.float64, device=ids.device)
    return gradient.scatter_add_(1, ids[..., None].expand(delta.shape), delta.double())


@pytest.mark.parametrize(
    ("k", "o", "c", "t", "b", "planes", "splits"),
    [
        (8, 9, 3, 7, 1, 2, 1),
        (32, 3, 63, 1, 3, 2, 1),
        (64, 129, 9, 33, 1, 2, 3),
        (512, 65, 63, 7, 3, 1, 3),
        (1024, 63, 65, 33, 1, 2, 3),
        (4096, 129, 129, 7, 1, 2, 1),
        (4096, 1000, 3, 7, 2, 1, 3),
        (8192, 65, 129, 1, 1, 2, 1),
        (32768, 129, 20, 3, 1, 2, 2),
    ],
)
def test_against_the_matrix(k, o, c, t, b, planes, splits, make_map, into, close, device):
    made = make_map(k, (o, c), output=1)
    ids = torch.randint(0, o, (b, t), device=device)
    ids[:, t // 2 :] = ids[:, :1]  # repeated
    delta = torch.randn(b, t, c, device=device)
    to = into(made, splits, b)
    run(made, ids, delta, to, planes)
    close(made, to, scattered(ids, delta, o), planes)


def test_ids_outside_add_nothing(make_map, into, close, device):
    made = make_map(64, (20, 9))
    ids = torch.tensor([[3, -1, 20, 3, 2**40, -(2**40), 19]], device=device)
    delta = torch.randn(1, 7, 9, device=device)
    delta[0, 1] = math.nan
    to = into(made, 2, 1)
    run(made, ids, delta, to, 2)
    kept = [0, 3, 6]
    close(made, to, scattered(ids[:, kept], delta[:, kept], 20))


def test_samples_do_not_meet(make_map, into, device):
    made = make_map(512, (40, 33))
    ids, delta = torch.randint(0, 40, (3, 5), device=device), torch.randn(3, 5, 33, device=device)
    alone, together = into(made, 2, 1), into(made, 2, 3)
    run(made, ids[1:2], delta[1:2], alone, 2)
    delta[0], delta[2, 3, 4] = math.nan, math.inf
    run(made, ids, delta, together, 2)
    assert torch.equal(together[:, 1], alone[:, 0])
    assert not together[:, [0, 2]].sum(0).isfinite().any()


def test_nothing_to_do(make_map, into, device):
    made = make_map(64, (20, 9))
    to = into(made, 2, 1)
    ids = torch.zeros(1, 0, dtype=torch.int64, device=device)
    run(made, ids, torch.randn(1, 0, 9, device=device), to, 2)
    assert not to.any()
