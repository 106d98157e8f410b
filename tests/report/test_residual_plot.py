import dataclasses
import io

import pytest
import torch
from torch import nn

from pntk.errors import ConfigError
from pntk.ntk.residuals import residual_study
from pntk.report.residual_plot import residual_plot

matplotlib_image = pytest.importorskip("matplotlib.image", reason="plots need matplotlib")


@pytest.fixture(scope="module")
def study():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 2))
    return residual_study(model, torch.randn(12, 4), proj_dims=(16, 64), seeds=3)


def test_residuals_against_width_and_their_distribution(study, figures):
    image = matplotlib_image.imread(io.BytesIO(residual_plot(study)), format="png")
    assert image.shape[2] == 4
    top, bottom = figures[0].axes
    assert (top.get_xscale(), top.get_yscale(), bottom.get_xscale()) == ("log", "log", "linear")
    lines = {line.get_label(): line for line in top.lines}
    mean = study.levels[0].mean.value
    assert lines["$k^{-1/2}$"].get_ydata().tolist() == pytest.approx([mean, mean / 2])
    assert lines["$k^{-1}$"].get_ydata().tolist() == pytest.approx([mean, mean / 4])
    drawn = [bars[0].get_ydata().tolist() for bars in top.containers]
    assert drawn[0] == [level.mean.value for level in study.levels]
    assert drawn[1] == [level.quantiles[0.95].value for level in study.levels]
    names = [text.get_text() for text in bottom.get_legend().get_texts()]
    assert names == ["k = 16", "k = 64", "exponential", "half-normal", "mixture"]
    for line in bottom.lines:
        shares = line.get_ydata()
        assert (shares[1:] >= shares[:-1]).all() and shares[0] >= 0 and shares[-1] <= 1


def test_one_width(study, figures):
    residual_plot(dataclasses.replace(study, levels=study.levels[:1], exponent=None))
    assert len(figures[0].axes[1].lines) == 4


def test_nothing_to_draw(study):
    with pytest.raises(ConfigError, match="the study has 0 widths to draw"):
        residual_plot(dataclasses.replace(study, levels=()))
