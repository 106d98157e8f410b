"""Dense projections by the Triton kernel against the float64 matrix."""

import functools

import pytest
import torch

from pntk.projection import ProjectionSpec
from pntk.projection.bits import stream_id
from pntk.projection.quantiles import dense_scale
from pntk.projection.reference import projection_matrix

kernels = pytest.importorskip("pntk.kernels.dense")

NAME, SEED = "block.0.weight", 2**63 + 5
BOUNDS = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 3e-3}
CASES = [  # b, p, k, splits
    (1, 1, 1, 1),
    (3, 33, 5, 3),
    (3, 129, 64, 1),
    (65, 129, 5, 1),
    (1, 1000, 130, 3),
]

both_families = pytest.mark.parametrize("family", ["rademacher", "normal"])
every_precision = pytest.mark.parametrize("precision", BOUNDS)


def project(g, family, k, *, precision="fp32", splits=1, stream=None):
    """The kernel's result, into memory that holds something else."""
    stream = stream_id(family, k, "entries", 0, NAME) if stream is None else stream
    to = torch.full((splits, g.shape[0], k), float("nan"), device=g.device)
    kernels.dense(g, family, precision, dense_scale(family, k), SEED, stream, to)
    return to.sum(0)


@functools.cache
def matrix(family, k, p):
    return torch.from_numpy(projection_matrix(ProjectionSpec(family, k, SEED), NAME, (p,)))


def error(found, g, family):
    """|found - P g| / |g|; both sides have the same expected size, and g does not cancel."""
    g = g.cpu().double()
    expected = g @ matrix(family, found.shape[1], g.shape[1]).mT
    return float((found.cpu() - expected).norm() / g.norm())


@both_families
@every_precision
@pytest.mark.parametrize(("b", "p", "k", "splits"), CASES)
def test_against_the_matrix(family, precision, b, p, k, splits, device):
    g = torch.randn(b, p).to(device)
    found = project(g, family, k, precision=precision, splits=splits)
    alone = 2 if p == 1 else 1  # nothing averages the rounding of a single number
    assert error(found, g, family) < alone * BOUNDS[precision]


@both_families
def test_sums_are_promoted(family, device):
    g = torch.randn(3, 4500).to(device)  # more than twice what one accumulator sums up
    assert error(project(g, family, 5), g, family) < BOUNDS["fp32"]


@both_families
def test_windows_do_not_matter(family, device, monkeypatch):
    g = torch.randn(3, 4500).to(device)
    whole = project(g, family, 5, splits=2)
    monkeypatch.setattr(kernels, "WORKSPACE_BYTES", 0)  # one accumulator's coordinates at a time
    assert torch.equal(project(g, family, 5, splits=2), whole)


@pytest.mark.filterwarnings("ignore:invalid value")
@every_precision
def test_samples_do_not_meet(precision, device):
    g = torch.randn(67, 300).to(device)
    expected = project(g, "rademacher", 70, precision=precision)
    wrong = {1: float("nan"), 17: float("inf"), 66: float("-inf")}
    for row, value in wrong.items():
        g[row, 270] = value
    found = project(g, "rademacher", 70, precision=precision)
    for row in range(67):
        if row in wrong:
            assert not found[row].isfinite().any()
        else:
            assert torch.equal(found[row], expected[row])


@pytest.mark.parametrize("b", [1, 16, 17])
def test_rows_do_not_depend_on_the_batch(b, device):
    g = torch.randn(65, 300).to(device)
    part, whole = (project(x, "rademacher", 70) for x in (g[:b], g))
    if device.type == "cuda":
        assert torch.equal(part, whole[:b])
    else:  # a product of other sizes is summed up in another order on the CPU
        torch.testing.assert_close(part, whole[:b], rtol=0, atol=1e-6 * float(g.norm(dim=1).max()))


@both_families
def test_zeros(family, device):
    assert (project(torch.zeros(3, 200, device=device), family, 5, splits=3) == 0).all()


@both_families
def test_no_coordinates(family, device):
    assert (project(torch.empty(3, 0, device=device), family, 5, splits=2) == 0).all()


def test_no_samples(device):
    assert project(torch.empty(0, 7, device=device), "normal", 5).shape == (0, 5)


def test_streams_differ(device):
    g = torch.randn(3, 129).to(device)
    assert not torch.equal(*(project(g, "normal", 64, stream=s) for s in (1, 2**64 - 1)))
