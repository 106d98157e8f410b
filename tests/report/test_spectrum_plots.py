import io
import math

import numpy as np
import pytest
import torch

from pntk.errors import ConfigError
from pntk.ntk.sources import from_rows
from pntk.ntk.spectrum import spectrum_of
from pntk.report.spectrum_plots import COLOURS, spectra_plot, training_plot

matplotlib_image = pytest.importorskip("matplotlib.image", reason="plots need matplotlib")

HISTORY = [
    {"step": step, "target_alignment": 0.1 * step, "drift": 0.2, "effective_rank": 5.0 - step}
    for step in range(3)
]


def spectrum(*values):
    return spectrum_of(torch.diag(torch.tensor(values, dtype=torch.float64)))


def test_spectra_and_share_of_the_trace(figures):
    partial = spectrum_of(torch.diag(torch.tensor([6.0, 3.0, 1.0])), num=2)
    png = spectra_plot({"one": spectrum(8.0, 2.0, 0.0), "two": partial})
    assert matplotlib_image.imread(io.BytesIO(png), format="png").shape[2] == 4
    top, bottom = figures[0].axes
    assert (top.get_xscale(), top.get_yscale(), bottom.get_yscale()) == ("log", "log", "linear")
    drawn = [[line.get_ydata().tolist() for line in axes.lines] for axes in (top, bottom)]
    assert drawn == [[[8, 2], [6, 3]], [[80, 100], pytest.approx([60, 90])]]
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["one", "two"]


def test_one_spectrum_needs_no_legend(figures):
    spectra_plot({"one": spectrum_of(from_rows(torch.randn(80, 70)))})
    top, bottom = figures[0].axes
    assert top.get_legend() is None
    assert bottom.lines[0].get_ydata()[-1] == pytest.approx(100)


def test_many_spectra_stay_apart(figures):
    spectra_plot({f"_{'x' * 60}{number}$": spectrum(2.0, 1.0) for number in range(8)})
    top = figures[0].axes[0]
    looks = [(line.get_color(), line.get_linestyle()) for line in top.lines]
    assert len(set(looks)) == 8
    assert looks[0] == (COLOURS[0], "-") and looks[6] == (COLOURS[0], "--")
    names = [text.get_text() for text in top.get_legend().get_texts()]
    assert names[3].startswith("…x") and names[3].endswith(r"x3\$")
    assert len({*names}) == 8


def test_training(figures):
    training_plot([*HISTORY, {"step": 3, "drift": math.nan}])
    alignment, drift, rank = figures[0].axes
    assert [axes.get_ylabel() for axes in (alignment, drift, rank)] == [
        "alignment",
        "drift",
        "effective rank",
    ]
    np.testing.assert_allclose(alignment.lines[0].get_ydata(), [0, 0.1, 0.2, np.nan])
    np.testing.assert_array_equal(rank.lines[0].get_xdata(), [0, 1, 2, 3])
    assert rank.get_xlabel() == "step"


def test_panels_without_a_measurement_are_left_out(figures):
    training_plot([{"step": 0, "drift": 0.0, "target_alignment": math.nan}])
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["drift"]


def test_nothing_to_draw():
    with pytest.raises(ConfigError, match="there are 0 spectra to draw; expected at least one"):
        spectra_plot({})
    with pytest.raises(
        ConfigError, match=r"the spectrum 'k.h5' has no eigenvalue above 0; expected"
    ):
        spectra_plot({"k.h5": spectrum(0.0, 0.0)})
    for history in ([], [{"step": 0}]):
        with pytest.raises(ConfigError, match=f"the history has {len(history)} measurements, none"):
            training_plot(history)


def test_plots_repeat():
    assert training_plot(HISTORY) == training_plot(HISTORY)
