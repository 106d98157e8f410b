import doctest

import numpy as np
import pytest

from pntk.report import summary


def test_docstring_examples():
    assert doctest.testmod(summary, extraglobs={"np": np}).failed == 0


def test_cosine_kernel_of_rows():
    rows = np.random.default_rng(0).normal(size=(5, 3))
    rows[2] = 0
    cosine = summary.cosine_kernel(rows @ rows.T)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(cosine, unit @ unit.T, atol=1e-12)
    np.testing.assert_allclose(summary.cosine_kernel(cosine), cosine, atol=1e-12)


def test_kernel_caption():
    cosine = np.array([[1, 0.8, 0.1], [0.8, 1, 0.3], [0.1, 0.3, 1]])
    labels = np.array([0, 0, 1])
    assert summary.kernel_caption(cosine, labels).endswith(
        "of 3 samples, sorted by class; the mean over pairs is "
        "0.800 within classes and 0.200 across classes."
    )
    assert summary.kernel_caption(cosine, np.arange(3)).endswith("is 0.400 across classes.")
    assert summary.kernel_caption(cosine, None).endswith("the mean over pairs is 0.400.")
    assert summary.kernel_caption(np.eye(1), None).endswith("of 1 sample.")


def test_spectrum_caption():
    caption = summary.spectrum_caption(np.array([5.0, 5.0, 0.0, -1e-17]))
    assert caption == (
        "2 eigenvalues, the largest 5. The first 2 hold 90% of their sum; the effective rank is "
        "2.0. 2 more are zero up to rounding, and not drawn."
    )
    assert "first 1 holds 90%" in summary.spectrum_caption(np.array([9.5, 0.5]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_significant_spectrum_finds_the_rank(dtype):
    rows = np.random.default_rng(0).normal(size=(40, 7)).astype(dtype)
    spectrum = np.linalg.eigvalsh(rows @ rows.T)
    kept = summary.significant_spectrum(spectrum)
    np.testing.assert_array_equal(kept, np.sort(spectrum)[::-1][:7])


def test_coverage_groups():
    rows = [
        {"name": "a", "rule": "bias", "count": 10},
        {"name": "b", "rule": "linear", "count": 60},
        {"name": "c", "rule": "bias", "count": 30},
    ]
    groups = summary.coverage_groups(rows)
    assert [(g.rule, g.count, g.share) for g in groups] == [("linear", 60, 0.6), ("bias", 40, 0.4)]
    assert [row["name"] for row in groups[1].rows] == ["a", "c"]


def test_agreement_is_unknown_without_both_labels():
    assert summary.agreement("a", "a") is True
    assert summary.agreement("a", "b") is False
    assert summary.agreement(None, "b") is None
    assert summary.agreement("a", None) is None
