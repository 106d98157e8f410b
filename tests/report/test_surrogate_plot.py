from dataclasses import replace

import numpy as np
import pytest

from pntk.report.surrogate_plot import log_odds, probability_ticks, scatter_caption, scatter_plot

pytest.importorskip("matplotlib")


def test_right_and_wrong_are_told_apart(surrogate, figures):
    assert scatter_plot(surrogate).startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    right, wrong = (dots.get_offsets() for dots in axes.collections)
    np.testing.assert_allclose(right, log_odds(np.array([[0.9, 0.99], [0.6, 0.8]])))
    np.testing.assert_allclose(wrong, log_odds(np.array([[0.7, 0.4]])))
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < log_odds(np.array(0.4)) and axes.get_xlim()[1] > np.log(99)
    assert axes.get_ylabel() == "network: probability of the own class"
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["equal", "network right", "network wrong"]
    assert len({dots.get_facecolor().tobytes() for dots in axes.collections}) == 2


def test_saturated_examples_are_not_drawn(surrogate, figures):
    some = replace(surrogate, network=np.array([1.0, 0.8, 0.4]))
    scatter_plot(some)
    assert [len(dots.get_offsets()) for dots in figures[0].axes[0].collections] == [1, 1]
    assert scatter_caption(some) == (
        "glm: 2 examples, of which the network gets 1 wrong. Kendall τ-b "
        f"{some.report.kendall_tau:.3f}. 1 more have a probability of 0 or 1."
    )
    assert "more" not in scatter_caption(surrogate)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_nothing_to_draw(surrogate, figures, value):
    scatter_plot(replace(surrogate, ours=np.full(3, value)))
    low, high = figures[0].axes[0].get_xlim()
    assert low < -1 and high > 1


def test_ticks_are_probabilities():
    places, names = probability_ticks(-10.0, 10.0)
    assert names == ["0.0001", "0.01", "0.5", "0.99", "0.9999"]
    np.testing.assert_allclose(places, [-9.21, -4.595, 0, 4.595, 9.21], atol=1e-3)
    assert "$1-10^{-8}$" in probability_ticks(0.0, 20.0)[1]
