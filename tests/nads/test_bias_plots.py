import io
import math

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")
from pntk.errors import ConfigError
from pntk.nads.bias_plots import plot_bias_curve, plot_bias_map


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_curve():
    figure = plot_bias_curve([100, 0, 5], {"a": [0.5, 1, 0.75], "b": [0.6, math.nan, 0.7]})
    (axes,) = figure.axes
    line = axes.lines[0]
    assert line.get_xdata().tolist() == [0, 5, 100]
    np.testing.assert_allclose(line.get_ydata(), [100, 75, 50])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.lines[2].get_ydata()[0] == 50
    assert axes.get_xticks().tolist() == [0, 5, 100]
    assert axes.get_xlim() == pytest.approx((-1, 110))
    assert png(figure).startswith(b"\x89PNG")


def test_many_indices_share_ticks_and_clean_data_has_a_line():
    figure = plot_bias_curve(range(0, 300, 10), {"a": [0.5] * 30}, guess=0.1, clean=0.95)
    (axes,) = figure.axes
    assert axes.get_xticks().tolist() == [0, 5, 10, 30, 100]
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [10, 95]
    assert "without poison" in [text.get_text() for text in axes.texts]
    few = plot_bias_curve([0, 1, 2], {"a": [0.5] * 3}).axes[0]
    assert all(tick == int(tick) for tick in few.get_xticks())


def test_map():
    frequencies = [(0, 0), (0, 4), (2, 0)]
    figure = plot_bias_map(frequencies, [1, 0.5, math.nan], title="LeNet")
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(shown, -1), [[100, 50], [-1, -1]])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "2"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "4"]
    assert png(figure).startswith(b"\x89PNG")


def test_what_cannot_be_drawn():
    with pytest.raises(ConfigError, match="there are 0 lines of 1 points"):
        plot_bias_curve([1], {})
    with pytest.raises(ConfigError, match=r"'a' have shape \(2,\); expected \(1,\)"):
        plot_bias_curve([1], {"a": [1, 2]})
    with pytest.raises(ConfigError, match=r"shape \(2,\) and there are 1 frequencies"):
        plot_bias_map([(0, 0)], [1, 2])
