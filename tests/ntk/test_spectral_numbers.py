import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pntk.errors import ConfigError
from pntk.ntk.spectral_numbers import (
    Spectrum,
    condition_number,
    effective_rank,
    participation_ratio,
)

spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20).map(torch.tensor)


def spectrum(values, size=None, squares=None, complete=True):
    values = torch.tensor(values, dtype=torch.float64)
    size = len(values) if size is None else size
    return Spectrum(values, size, float(values.sum()), squares, 1e-12, complete)


@given(spectra)
def test_ranks_lie_between_one_and_all(values):
    few, many = participation_ratio(values), effective_rank(values)
    assert 1 - 1e-9 <= few <= many + 1e-9 <= len(values) + 2e-9


@given(spectra, st.floats(1e-3, 1e3))
def test_scale_and_order_do_not_matter(values, scale):
    for function in (condition_number, effective_rank, participation_ratio):
        assert function(values.flip(0).double() * scale) == pytest.approx(function(values))


@pytest.mark.parametrize("number", [1, 2, 7, 100])
def test_equal_eigenvalues_count_as_many(number):
    values = torch.cat([torch.full((number,), 3.0), torch.zeros(5)])
    assert effective_rank(values) == pytest.approx(number)
    assert participation_ratio(values) == pytest.approx(number)
    assert condition_number(values) == math.inf
    assert condition_number(values[:number]) == 1


def test_closed_form_of_two():
    p = 0.9  # entropy of (p, 1 - p)
    expected = math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert effective_rank(torch.tensor([9.0, 1.0], dtype=torch.float64)) == pytest.approx(expected)
    assert participation_ratio(torch.tensor([9.0, 1.0])) == pytest.approx(100 / 82)


def test_what_is_zero_but_for_rounding():
    values = torch.tensor([1.0, 0.5, 1e-6], dtype=torch.float64)
    assert condition_number(values) == pytest.approx(1e6)
    assert condition_number(values, floor=1e-5) == math.inf
    assert condition_number(-values) == math.inf
    assert condition_number(torch.tensor([1.0, -1e-3])) == math.inf


def test_zeros_have_no_rank():
    assert math.isnan(effective_rank(torch.zeros(3)))
    assert math.isnan(participation_ratio(torch.zeros(3)))
    assert condition_number(torch.zeros(3)) == math.inf


def test_tiny_eigenvalues_do_not_vanish():
    assert participation_ratio(torch.tensor([1e-200, 1e-200], dtype=torch.float64)) == 2
    assert effective_rank(torch.tensor([1e200, 1e200], dtype=torch.float64)) == pytest.approx(2)


@pytest.mark.parametrize("values", [torch.ones(2, 2), torch.ones(0), torch.tensor([math.nan])])
def test_what_are_no_eigenvalues(values):
    for function in (condition_number, effective_rank, participation_ratio):
        with pytest.raises(ConfigError, match=r"eigenvalues have shape .* expected finite numbers"):
            function(values)


def test_summary_of_all():
    found = spectrum([6.0, 3.0, 1.0], squares=46.0).summary()
    assert found == {
        "samples": 3,
        "eigenvalues": 3,
        "trace": 10,
        "largest": 6,
        "smallest": 1,
        "share_of_first": 0.6,
        "share_of_ten": None,
        "rank": 3,
        "condition_number": 6,
        "effective_rank": effective_rank(torch.tensor([6.0, 3.0, 1.0])),
        "participation_ratio": 100 / 46,
    }


def test_rows_narrower_than_the_kernel_leave_zeros():
    found = spectrum([6.0, 3.0], size=5)
    assert (found.smallest, found.rank, found.condition_number) == (0, 2, math.inf)
    assert found.participation_ratio == pytest.approx(81 / 45)


def test_the_first_eigenvalues_do_not_tell_all():
    found = spectrum([6.0, 3.0], size=5, complete=False)
    for name, what in (
        ("smallest", "smallest eigenvalue"),
        ("rank", "rank"),
        ("condition_number", "condition number"),
        ("effective_rank", "effective rank"),
        ("participation_ratio", "participation ratio"),
    ):
        with pytest.raises(ConfigError, match=f"2 of 5 eigenvalues are known; the {what} takes"):
            getattr(found, name)
        assert found.summary()[name] is None
    assert spectrum([6.0], size=5, squares=36.0, complete=False).participation_ratio == 1
