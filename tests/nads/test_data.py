import math

import pytest
import torch

from pntk.errors import ConfigError
from pntk.nads.data import DirectionalLinearDataset, create_rfft2_direction, fourier_grid


@pytest.mark.parametrize("shape", [(4,), (1, 8, 8), (3, 5, 6)])
def test_classes_differ_along_the_direction_alone(shape):
    v = torch.randn(shape)
    data = DirectionalLinearDataset(7 * v, 601, sigma=2, epsilon=3, seed=4)
    flat, unit = data.data.flatten(1).double(), (v / v.norm()).flatten().double()
    along = flat @ unit
    torch.testing.assert_close(along, 1.5 - 3.0 * data.targets.double(), atol=1e-5, rtol=0)
    assert data.targets.tolist() == [0] * 301 + [1] * 300
    rest = flat - along[:, None] * unit
    assert rest.square().sum() / (601 * (unit.numel() - 1)) == pytest.approx(4, rel=0.15)
    covariance = rest.T @ rest / 601
    torch.testing.assert_close(
        covariance, 4 * (torch.eye(len(unit)) - torch.outer(unit, unit)).double(), atol=1.3, rtol=0
    )


def test_seed_and_items():
    v = torch.ones(1, 4, 4)
    first, again, other = (DirectionalLinearDataset(v, 6, seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(first.data, again.data, atol=0, rtol=0)
    assert not torch.equal(first.data, other.data)
    assert len(first) == 6 and first.data.shape == (6, 1, 4, 4)
    x, y = first[5]
    assert torch.equal(x, first.data[5]) and (y, type(y)) == (1, int)
    state = torch.random.get_rng_state()
    DirectionalLinearDataset(v, 6)
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_sample():
    assert DirectionalLinearDataset(torch.ones(2), 1).targets.tolist() == [0]


@pytest.mark.parametrize(
    ("direction", "match"),
    [
        (torch.zeros(1, 4, 4), r"shape \(1, 4, 4\) has length 0.0; expected a direction"),
        (torch.tensor([1.0, math.nan]), "has length nan"),
        (torch.ones(0), "has length 0.0"),
        (torch.ones(3, dtype=torch.int64), "direction is torch.int64; expected a tensor of float"),
        ([1.0, 2.0], "direction is list; expected a tensor"),
    ],
)
def test_directions_that_are_refused(direction, match):
    with pytest.raises(ConfigError, match=match):
        DirectionalLinearDataset(direction)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 0}, "num_samples is 0; expected an integer of at least 1"),
        ({"num_samples": 2.5}, "num_samples is 2.5"),
        ({"sigma": -1}, "sigma is -1; expected a finite number of at least 0"),
        ({"epsilon": 0}, "epsilon is 0; expected a finite number above 0"),
        ({"epsilon": math.inf}, "epsilon is inf"),
    ],
)
def test_numbers_that_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        DirectionalLinearDataset(torch.ones(2), **options)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 6), (2, 6, 5), (1, 7, 7), (4, 9)])
@pytest.mark.parametrize("value", [1, 1j, -2 + 0.5j])
def test_direction_is_what_irfft2_makes_of_one_coefficient(shape, value):
    limits = (*shape[:-1], shape[-1] // 2 + 1)
    compared = 0
    for index in torch.cartesian_prod(*(torch.arange(limit) for limit in limits)).tolist():
        coefficients = torch.zeros(limits, dtype=torch.complex128)
        coefficients[tuple(index)] = value
        expected = torch.fft.irfft2(coefficients, s=shape[-2:])
        if expected.norm() < 1e-10:
            with pytest.raises(ConfigError, match="use a real value"):
                create_rfft2_direction(shape, index, value)
            continue
        found = create_rfft2_direction(shape, index, value)
        expected = (expected / expected.norm()).float()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert float(found.norm()) == pytest.approx(1, abs=1e-6)
        compared += 1
    assert compared > 10


def test_negative_index():
    torch.testing.assert_close(
        create_rfft2_direction((1, 8, 8), (-1, -3, 2)), create_rfft2_direction((1, 8, 8), (0, 5, 2))
    )


@pytest.mark.parametrize(
    ("shape", "index", "value", "match"),
    [
        ((1, 8, 8), (0, 0, 0), 1j, "is its own conjugate, so that value 1j gives the zero"),
        ((1, 8, 8), (0, 4, 4), 2j, "use a real value such as 1"),
        ((1, 8, 8), (0, 0, 5), 1, r"index is \(0, 0, 5\); expected a place .* \(1, 8, 5\)"),
        ((1, 8, 8), (3, 4), 1, r"index is \(3, 4\)"),
        ((1, 8, 8), (0, 0, 1), 0, "value is 0j; expected a finite number other than 0"),
        ((1, 8, 8), (0, 0, 1), math.nan, "value is .*nan"),
        ((8,), (1,), 1, r"shape is \(8,\); expected positive sizes"),
        ((1, 0, 8), (0, 0, 0), 1, "expected positive sizes"),
    ],
)
def test_coefficients_that_are_refused(shape, index, value, match):
    with pytest.raises(ConfigError, match=match):
        create_rfft2_direction(shape, index, value)


def test_grid():
    grid = fourier_grid((2, 8, 6), step=2, channel=1)
    assert grid.frequencies == [(0, 0), (0, 2), (2, 0), (2, 2)]
    torch.testing.assert_close(grid.directions[3], create_rfft2_direction((2, 8, 6), (1, 2, 2)))
    torch.testing.assert_close(grid.directions[0, 1], torch.full((8, 6), 48**-0.5))
    flat = fourier_grid((1, 8, 8)).directions.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(16), atol=1e-6, rtol=0)
    both = fourier_grid((1, 8, 6), step=2, negative=True)
    assert [u for u, v in both.frequencies if v == 0] == [-4, -2, 0, 2]
    torch.testing.assert_close(both.directions[3], create_rfft2_direction((1, 8, 6), (0, 6, 2)))
    with pytest.raises(ConfigError, match=r"shape is \(8, 8\); expected \[c, h, w\]"):
        fourier_grid((8, 8))
    with pytest.raises(ConfigError, match="step is 0; expected an integer of at least 1"):
        fourier_grid((1, 8, 8), step=0)
