"""Products of rows and their cosines by the Triton kernel, against float64."""

import pytest
import torch

from pntk.rows import inverse_norms

kernels = pytest.importorskip("pntk.kernels.gram")

BOUNDS = {"fp32": 1e-6, "tf32": 1e-3, "bf16": 5e-3}
SIZES = [(1, 1, 1), (1, 63, 129), (63, 129, 64), (129, 1, 33), (65, 64, 5), (200, 260, 40)]

every_precision = pytest.mark.parametrize("precision", BOUNDS)


def product(x, y, x_scale=None, y_scale=None, precision="fp32"):
    """The kernel's result, into memory that holds something else."""
    out = torch.full((len(x), len(y)), float("nan"), device=x.device)
    kernels.gram(x, y, x_scale, y_scale, out, precision)
    return out.cpu()


def error(found, x, y, scaled):
    """The largest |found - x y^T| over the product of the norms."""
    expected = x.cpu().double() @ y.cpu().double().mT
    norms = x.cpu().double().norm(dim=1)[:, None] * y.cpu().double().norm(dim=1)
    if scaled:
        expected, norms = expected / norms, torch.ones(())
    return float(((found - expected).abs() / norms).max())


@every_precision
@pytest.mark.parametrize(("n", "m", "k"), SIZES)
def test_against_float64(n, m, k, precision, device):
    x, y = torch.randn(n, k).to(device), torch.randn(m, k).to(device)
    assert error(product(x, y, precision=precision), x, y, False) < BOUNDS[precision]


@pytest.mark.parametrize(("n", "m", "k"), SIZES)
def test_cosines(n, m, k, device):
    x, y = torch.randn(n, k).to(device), torch.randn(m, k).to(device)
    found = product(x, y, inverse_norms(x, n), inverse_norms(y, m))
    assert error(found, x, y, True) < BOUNDS["fp32"]


def test_one_scale(device):
    x, y, scale = (torch.randn(*shape).to(device) for shape in ((63, 5), (65, 5), (63,)))
    torch.testing.assert_close(product(x, y, scale), product(scale[:, None] * x, y))
    torch.testing.assert_close(product(y, x, None, scale), product(y, scale[:, None] * x))


def test_long_rows(device):
    x, y = torch.randn(3, 5000).to(device), torch.randn(5, 5000).to(device)
    assert error(product(x, y), x, y, False) < BOUNDS["fp32"]


def test_zero_rows(device):
    x = torch.randn(5, 40).to(device)
    x[2] = 0
    found = product(x, x, inverse_norms(x, 5), inverse_norms(x, 5))
    assert (found[2] == 0).all() and (found[:, 2] == 0).all()
    assert found.isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_rows_do_not_meet(device):
    x, y = torch.randn(65, 40).to(device), torch.randn(67, 40).to(device)
    expected = product(x, y)
    x[3, 7], y[66, 39] = float("nan"), float("inf")
    found = product(x, y)
    assert found[3].isnan().all() and not found[:, 66].isfinite().any()
    found[3], found[:, 66] = expected[3], expected[:, 66]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("n", "m", "k"), [(0, 3, 5), (3, 0, 5)])
def test_no_rows(n, m, k, device):
    assert product(torch.ones(n, k).to(device), torch.ones(m, k).to(device)).shape == (n, m)


def test_no_columns(device):
    assert (product(torch.ones(3, 0).to(device), torch.ones(4, 0).to(device)) == 0).all()
