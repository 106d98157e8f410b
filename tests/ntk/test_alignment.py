import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pntk.errors import ConfigError
from pntk.ntk import sources
from pntk.ntk.alignment import alignment, centered_alignment, drift, target_alignment
from pntk.ntk.projected import ntk
from pntk.ntk.sources import from_rows


def rows(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def plain(a, b):
    """By the definition."""
    return float((a * b).sum() / a.norm() / b.norm())


def centre(kernel):
    h = torch.eye(len(kernel), dtype=torch.float64) - 1 / len(kernel)
    return h @ kernel @ h


@pytest.mark.parametrize("block_bytes", [1, 700, 2**26])
@pytest.mark.parametrize("widths", [(3, 5), (3, 25), (25, 30), (15, 15)])
def test_every_kind_of_kernel_gives_the_same(
    tmp_path, make_store, monkeypatch, block_bytes, widths
):
    monkeypatch.setattr(sources, "BLOCK_BYTES", block_bytes)
    a, b = rows(15, widths[0]), rows(15, widths[1], seed=1)
    forms = []
    for number, x in enumerate((a, b)):
        ntk(x, out=tmp_path / f"{number}.h5")
        store = make_store(tmp_path / f"rows{number}.h5", x)
        forms.append((x @ x.T, (x @ x.T).numpy(), tmp_path / f"{number}.h5", from_rows(x), store))
    k, m = forms[0][0], forms[1][0]
    for left, right in itertools.product(*forms):
        assert alignment(left, right) == pytest.approx(plain(k, m), rel=1e-12)
        expected = plain(centre(k), centre(m))
        assert centered_alignment(left, right) == pytest.approx(expected, rel=1e-12)


def test_rows_never_make_the_kernel(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(sources.RowKernel, "block", refuse)
    a, b = from_rows(rows(40, 5)), from_rows(rows(40, 60, seed=1)[:, :7])
    assert 0 < alignment(a, b) <= 1
    assert 0 < centered_alignment(a, b) <= 1
    assert 0 < target_alignment(a, torch.arange(40) % 3, centered=True) <= 1


def test_wide_rows_make_the_kernel_instead(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(sources.RowKernel, "product", refuse)
    assert 0 < centered_alignment(from_rows(rows(5, 40)), from_rows(rows(5, 60, seed=1))) <= 1


def test_closed_forms():
    eye, ones = torch.eye(9), torch.ones(9, 9)
    assert alignment(eye, ones) == pytest.approx(1 / 3)
    assert alignment(eye, eye) == 1
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    assert alignment(from_rows(x[:, None]), from_rows(y[:, None])) == pytest.approx(0.36)  # cos^2


@given(st.integers(0, 100), st.floats(0.01, 100), st.floats(-5, 5))
def test_what_centred_alignment_ignores(seed, scale, shift):
    a, b = rows(12, 4, seed), rows(12, 6, seed + 200)
    expected = centered_alignment(from_rows(a), from_rows(b))
    q = torch.linalg.qr(rows(6, 6, seed + 300))[0]
    moved = from_rows(scale * b @ q + shift)
    assert centered_alignment(from_rows(a), moved) == pytest.approx(expected)
    assert centered_alignment(moved, from_rows(a)) == pytest.approx(expected)
    assert 0 <= expected <= 1
    order = torch.randperm(12)
    again = centered_alignment(from_rows(a[order]), from_rows(b[order]))
    assert again == pytest.approx(expected)


def test_a_large_constant_hides_nothing():
    a, b = (x @ x.T for x in (rows(20, 5), rows(20, 5, seed=1)))
    expected = centered_alignment(a, b)
    assert centered_alignment(a + 1e6, b) == pytest.approx(expected, rel=1e-7)
    assert alignment(a + 1e6, b + 1e6) > 1 - 1e-6


def test_drift():
    a, b = (x @ x.T for x in (rows(20, 5), rows(20, 5, seed=1)))
    assert drift(a, a) == pytest.approx(0, abs=1e-12)
    assert drift(a, 2 * a + 1) == pytest.approx(0, abs=1e-12)
    assert drift(a, b) == pytest.approx(1 - centered_alignment(a, b))
    assert 0 < drift(a, b) < 1
    assert all(drift(x @ x.T, x @ x.T) >= 0 for x in (rows(9, 5, seed) for seed in range(50)))


# ---- targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda x: x @ x.T, from_rows])
def test_labels_are_one_hot(make):
    x, labels = rows(30, 4), torch.arange(30) % 3
    same = (labels[:, None] == labels).double()
    one_hot = torch.nn.functional.one_hot(labels).double()
    kernel = x @ x.T
    for targets in (labels, labels.numpy(), labels.tolist(), labels.to(torch.uint8), one_hot):
        assert target_alignment(make(x), targets) == pytest.approx(plain(kernel, same))
        found = target_alignment(make(x), targets, centered=True)
        assert found == pytest.approx(plain(centre(kernel), centre(same)))
    names = torch.tensor([7, 1000, 3])[labels]  # only which are equal counts
    assert target_alignment(make(x), names) == pytest.approx(plain(kernel, same))


def test_signs_are_those_of_cristianini():
    x, y = rows(20, 4), torch.where(torch.arange(20) % 2 == 0, 1.0, -1.0).double()
    kernel = x @ x.T
    expected = float(y @ kernel @ y) / (20 * float(kernel.norm()))  # their equation of section 3
    assert target_alignment(kernel, y) == pytest.approx(expected)
    assert target_alignment(kernel, y[:, None]) == pytest.approx(expected)


def test_perfect_and_useless_kernels():
    labels = torch.arange(12) % 4
    same = (labels[:, None] == labels).double()
    assert target_alignment(same, labels) == pytest.approx(1)
    assert target_alignment(same, labels, centered=True) == pytest.approx(1)
    across = torch.arange(12) // 4
    assert target_alignment(same, across, centered=True) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            torch.zeros(5, dtype=torch.int64),
            r"targets have shape \(5,\); expected \[4\] or \[4, c\]",
        ),
        (torch.zeros(4, 1, 1), r"targets have shape \(4, 1, 1\)"),
        (torch.zeros(4, 0), r"targets have shape \(4, 0\)"),
        (torch.ones(4, 2).long(), r"torch.int64 of shape \(4, 2\); expected classes \[4\], or flo"),
        (torch.tensor([0, -1, 1, -1]), "targets hold 2 negative classes, such as -1 for no label"),
        (torch.zeros(4), "the second kernel is zero, and its alignment undefined"),
        (np.array([0.0, 1.0, np.nan, 1.0]), "row 2 holds NaN or infinity"),
    ],
)
def test_targets_that_do_not_fit(targets, message):
    with pytest.raises(ConfigError, match=message):
        target_alignment(torch.eye(4), targets)


def test_kernels_that_cannot_be_compared():
    with pytest.raises(ConfigError, match=r"kernels are of 4 and 5 samples; expected the same"):
        alignment(torch.eye(4), torch.eye(5))
    with pytest.raises(ConfigError, match="the second kernel is a NoneType; expected"):
        alignment(torch.eye(4), None)
    with pytest.raises(ConfigError, match="the first kernel is zero, and its alignment"):
        alignment(torch.zeros(4, 4), torch.eye(4))
    with pytest.raises(ConfigError, match="too large for float64; expected norms below 1e150"):
        alignment(1e200 * torch.eye(3, dtype=torch.float64), torch.eye(3))


@pytest.mark.parametrize("width", [2, 9])
def test_nothing_is_left_of_a_constant(width):
    labels = torch.zeros(7, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"second kernel is zero after centring.*more than one"):
        target_alignment(torch.eye(7), labels, centered=True)
    same = torch.full((7, width), 0.1, dtype=torch.float64)
    for constant in (from_rows(same), same @ same.T):
        with pytest.raises(ConfigError, match="the first kernel is zero after centring"):
            centered_alignment(constant, torch.eye(7))
