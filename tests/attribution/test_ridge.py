import pytest
import torch

from pntk.attribution.ridge import SAFE_CONDITION, Solver, choose_ridge, gram
from pntk.errors import ConfigError
from pntk.rows import as_rows


@pytest.mark.parametrize("block", [1, 7, 100])
def test_gram(block):
    rows = torch.randn(33, 600)
    expected = rows.double().T @ rows.double()
    found = gram(as_rows(rows), block)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(found, found.T)


def test_solver():
    rows, test = torch.randn(30, 5).double(), torch.randn(4, 5).double()
    matrix = rows.T @ rows
    solver = Solver(matrix.clone(), 30, 0.5)
    expected = torch.linalg.solve(matrix + 0.5 * torch.eye(5).double(), test.T).T
    assert solver.ridge == 0.5
    assert torch.allclose(solver(test), expected, atol=1e-12)


def test_no_ridge_where_none_is_needed():
    assert choose_ridge(torch.linspace(1, 1e5, 20), n=200) == 0.0


def test_condition_number_is_what_was_promised():
    values = torch.tensor([1e9, 1.0, 0.0], dtype=torch.float64)
    ridge = choose_ridge(values, n=100)
    assert float((values.max() + ridge) / (values.min() + ridge)) == pytest.approx(SAFE_CONDITION)


@pytest.mark.parametrize("n", [1, 2, 10, 300])
def test_fitted_directions_are_a_tenth_of_the_samples(n):
    values = torch.logspace(0, 3, 40, dtype=torch.float64)
    ridge = choose_ridge(values, n)
    assert float((values / (values + ridge)).sum()) == pytest.approx(n / 10, rel=1e-6)


def test_order_does_not_matter():
    values = torch.rand(30)
    assert choose_ridge(values, 20) == choose_ridge(values.flip(0), 20)


def test_all_zero():
    with pytest.raises(ConfigError, match="all training rows are zero"):
        choose_ridge(torch.zeros(3), 5)


def test_auto_of_a_singular_matrix():
    rows = torch.randn(4, 9).double()
    solver = Solver(rows.T @ rows, 4, "auto")
    assert solver.ridge > 0
    assert solver(rows).isfinite().all()


def test_a_matrix_that_cholesky_can_just_factor_is_refused():
    rows = torch.diag(torch.tensor([1.0, 1e-7], dtype=torch.float64))
    with pytest.raises(ConfigError, match="is singular to rounding"):
        Solver(rows.T @ rows, 2, None)
    Solver(rows.T @ rows, 2, 1e-6)
