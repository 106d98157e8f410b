"""Principal directions by all three ways against the SVD of the rows."""

import pytest
import torch

from pntk.errors import DataError
from pntk.nads import principal
from pntk.nads.principal import principal_directions


def rows_of(n, d, decay=0.7):
    left = torch.linalg.qr(torch.randn(n, min(n, d), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(d, min(n, d), dtype=torch.float64)).Q
    return left * decay ** torch.arange(min(n, d)) @ right.T + 0.1


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("n", "d"), [(40, 9), (9, 9), (9, 40), (1, 5)])
@pytest.mark.parametrize("block", [1, 50, 2**24])
def test_exact_against_the_svd(n, d, centered, block, monkeypatch):
    if n == 1 and centered:
        pytest.skip("one row has no directions about its mean")
    monkeypatch.setattr(principal, "BLOCK", block)
    rows = rows_of(n, d)
    found = principal_directions(rows, centered=centered)
    wanted = rows - rows.mean(0) if centered else rows
    _, values, vectors = torch.linalg.svd(wanted, full_matrices=False)
    r = min(n - centered, d)
    assert found.directions.shape == (r, d)
    assert torch.allclose(found.singular_values, values[:r], atol=1e-7)
    few = min(r, 5)  # further down, squares lose digits
    cosines = (found.directions[:few] * vectors[:few]).sum(1).abs()
    assert torch.allclose(cosines, torch.ones(few, dtype=torch.float64), atol=1e-9)
    largest = found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_float32_rows_are_summed_in_float64():
    rows = rows_of(30, 6).float()
    found = principal_directions(rows, centered=False)
    expected = torch.linalg.svdvals(rows.double())
    assert found.directions.dtype == torch.float64
    assert torch.allclose(found.singular_values, expected, rtol=0, atol=1e-12)


def test_all_directions_where_some_pixels_do_nothing():
    rows = torch.randn(30, 6, dtype=torch.float64)
    rows[:, 2] = 0
    found = principal_directions(rows, centered=False)
    assert len(found.directions) == 6
    assert found.singular_values[-1] < 1e-7
    assert found.directions[-1].abs().argmax() == 2


@pytest.mark.parametrize("centered", [True, False])
def test_a_sketch_finds_the_first_directions(centered):
    rows = rows_of(80, 60)
    exact = principal_directions(rows, centered=centered)
    found = principal_directions(rows, centered=centered, proj_dim=32, seed=3)
    assert found.directions.shape == (16, 60)
    assert torch.allclose(found.singular_values, exact.singular_values[:16], rtol=1e-6)
    assert torch.allclose(found.directions[:8], exact.directions[:8], atol=1e-6)
    assert torch.allclose(found.directions @ found.directions.T, torch.eye(16).double(), atol=1e-9)


def test_what_is_too_large_is_sketched(monkeypatch):
    monkeypatch.setattr(principal, "EXACT", 16)
    found = principal_directions(rows_of(40, 50), centered=True)
    assert torch.allclose(
        found.directions @ found.directions.T, torch.eye(len(found.directions)).double(), atol=1e-6
    )


@pytest.mark.parametrize("d", [3, 30])
def test_nothing_to_find(d):
    with pytest.raises(DataError, match=r"all zero.*depend on their input"):
        principal_directions(torch.zeros(5, d), centered=False)
    with pytest.raises(DataError, match=r"all equal.*centered=False"):
        principal_directions(torch.full((5, d), 0.5), centered=True)
