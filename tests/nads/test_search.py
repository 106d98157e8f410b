import pytest
import torch
from torch import nn

from pntk.errors import ConfigError, MissingExtraError, OutputError
from pntk.nads import search
from pntk.nads.gradient_covariance import GradientCovariance
from pntk.nads.metrics import Isotropy
from pntk.nads.nads import NADs
from pntk.nads.search import kept_nads, most_isotropic, nads_grid

POINT = torch.zeros(1, 2, 4)


class Scaled(nn.Module):
    """w . x with entries of w of standard deviations decay^0 to decay^7."""

    def __init__(self, decay=1.0, outputs=1, bias=False):
        super().__init__()
        self.linear = nn.Linear(8, outputs, bias=bias)
        nn.init.normal_(self.linear.weight)
        with torch.no_grad():
            self.linear.weight *= decay ** torch.arange(8.0)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.fixture
def drawn(monkeypatch):
    """Names of the networks whose gradients were computed, one for each solution."""
    found = []
    original = GradientCovariance._fill

    def fill(self, missing, *args):
        found.append((self.model_params.get("decay"), len(missing)))
        return original(self, missing, *args)

    monkeypatch.setattr(GradientCovariance, "_fill", fill)
    return found


def test_every_combination(tmp_path):
    grid = {"decay": [0.5, 1.0], "bias": [False, True]}
    points = nads_grid(Scaled, grid, POINT, 50, progress=False, seed=3)
    assert [point.params for point in points] == [
        {"decay": 0.5, "bias": False},
        {"decay": 0.5, "bias": True},
        {"decay": 1.0, "bias": False},
        {"decay": 1.0, "bias": True},
    ]
    expected = GradientCovariance(POINT, Scaled, {"decay": 1.0, "bias": False}, seed=3).nads(
        50, progress=False
    )
    torch.testing.assert_close(points[2].nads.directions, expected.directions)
    assert points[2].isotropy == expected.isotropy()


def test_goes_on_where_it_stopped(tmp_path, drawn):
    folder = tmp_path / "grid"
    first = nads_grid(Scaled, {"decay": [0.5, 0.9]}, POINT, 20, folder, progress=False)
    assert drawn == [(0.5, 20), (0.9, 20)]
    again = nads_grid(Scaled, {"decay": [0.9, 0.7]}, POINT, 20, folder, progress=False)
    assert drawn[2:] == [(0.7, 20)]
    torch.testing.assert_close(again[0].nads.directions, first[1].nads.directions)
    assert len(list(folder.iterdir())) == 3  # no gradients are left
    assert all("decay=0." in file.name for file in folder.iterdir())
    nads_grid(Scaled, {"decay": [0.9]}, POINT, 21, folder, progress=False, centered=False)
    assert len(list(folder.iterdir())) == 4


def test_a_stop_keeps_gradients(tmp_path, monkeypatch, drawn):
    finder = GradientCovariance(POINT, Scaled, {"decay": 0.9}, group_size=4)
    original = GradientCovariance._gradients
    calls = []

    def gradients(self, numbers):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(numbers)
        return original(self, numbers)

    monkeypatch.setattr(GradientCovariance, "_gradients", gradients)
    with pytest.raises(KeyboardInterrupt):
        kept_nads(finder, 20, tmp_path / "a.h5", progress=False)
    monkeypatch.setattr(GradientCovariance, "_gradients", original)
    found = kept_nads(finder, 20, tmp_path / "a.h5", progress=False, keep_gradients=True)
    assert drawn[1] == (0.9, 12)
    assert {file.name for file in tmp_path.iterdir()} == {"a.h5", "a.gradients.h5"}
    torch.testing.assert_close(found.directions, finder.nads(20, progress=False).directions)
    torch.testing.assert_close(NADs.load(tmp_path / "a.h5").directions, found.directions)


def test_files_of_something_else_are_refused(tmp_path):
    file = tmp_path / "a.h5"
    kept_nads(GradientCovariance(POINT, Scaled), 20, file, progress=False)
    other = GradientCovariance(POINT, Scaled, seed=1, centered=False)
    with pytest.raises(
        ConfigError,
        match="holds NADs with centered = True, networks = 20, seed = 0, and False, 21, 1 was",
    ):
        kept_nads(other, 21, file)
    with pytest.raises(ConfigError, match=r"ends in '.npy'; expected .h5 or .hdf5"):
        kept_nads(other, 21, tmp_path / "a.npy")


def test_the_most_isotropic(tmp_path):
    grid = {"decay": [0.3, 0.95, 0.6]}
    for criterion in Isotropy._fields:
        options = {"criterion": criterion, "progress": False}
        found = most_isotropic(Scaled, grid, POINT, 100, tmp_path, **options)
        assert found.best.params == {"decay": 0.95}
        assert found.value == getattr(found.best.isotropy, criterion)
        assert [point.params["decay"] for point in found.points] == [0.3, 0.95, 0.6]


def test_optuna(tmp_path):
    optuna = pytest.importorskip("optuna", reason="optuna is optional")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    grid = {"decay": [0.3, 0.95, 0.6], "bias": [False, True]}
    options = {"method": "optuna", "trials": 30, "progress": False, "criterion": "gini"}
    found = most_isotropic(Scaled, grid, POINT, 100, tmp_path, **options)
    assert found.best.params["decay"] == 0.95
    assert len(found.points) == len({str(point.params) for point in found.points}) <= 6
    assert most_isotropic(Scaled, grid, POINT, 100, tmp_path, **options).value == found.value


class FakeTrial:
    def __init__(self, place):
        self.place = place

    def suggest_categorical(self, name, choices):
        return choices[self.place % len(choices)]


class FakeOptuna:
    """As much of optuna as is used: tries places 0, 1, 2, 1."""

    class samplers:
        TPESampler = dict

    def create_study(self, direction, sampler):
        self.direction, self.seed = direction, sampler["seed"]
        return self

    def optimize(self, objective, n_trials):
        self.values = [objective(FakeTrial(place)) for place in (0, 1, 2, 1)[:n_trials]]


def test_optuna_tries_each_architecture_once(monkeypatch, drawn):
    fake = FakeOptuna()
    monkeypatch.setattr(search, "require", lambda *_: fake)
    grid = {"decay": [0.5, 1.0, 0.7], "bias": [False]}
    options = {"method": "optuna", "trials": 4, "progress": False, "seed": 5}
    found = most_isotropic(Scaled, grid, POINT, 100, criterion="entropy", **options)
    assert drawn == [(0.5, 100), (1.0, 100), (0.7, 100)]
    assert found.best.params == {"decay": 1.0, "bias": False} and len(found.points) == 3
    assert (fake.direction, fake.seed) == ("maximize", 5)
    assert fake.values[1] == fake.values[3] == found.value
    most_isotropic(Scaled, grid, POINT, 100, **options)
    assert fake.direction == "minimize"


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'optuna.* pip install "pntk\[nads\]"'):
        most_isotropic(Scaled, {"decay": [1.0]}, POINT, method="optuna")


@pytest.mark.parametrize(
    ("grid", "options", "match"),
    [
        ({}, {}, r"grid is {}; expected names and lists"),
        ({"decay": []}, {}, r"grid\['decay'\] is \[\]; expected a list of at least 1 value"),
        ({"decay": "abc"}, {}, r"grid\['decay'\] is 'abc'"),
        ({"decay": [1.0]}, {"model_params": {"decay": 2}}, "decay in both grid and model_params"),
        ({"decay": [1.0]}, {"criterion": "best"}, "criterion is 'best'; expected one of kl_to_uni"),
        (
            {"decay": [1.0]},
            {"method": "random"},
            "method is 'random'; expected one of grid, optuna",
        ),
        ({"decay": [1.0]}, {"method": "optuna", "trials": 0}, "trials is 0; expected an integer"),
        ({"absent": [1.0]}, {}, "cannot be built with {'absent': 1.0}"),
    ],
)
def test_arguments_that_are_refused(grid, options, match):
    with pytest.raises(ConfigError, match=match):
        most_isotropic(Scaled, grid, POINT, **options)


def test_what_cannot_work_is_said_before_any_work(tmp_path, drawn):
    with pytest.raises(OutputError):
        nads_grid(Scaled, {"outputs": [1, 2]}, POINT, 20)
    assert drawn == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        nads_grid(Scaled, {"decay": [1.0]}, POINT, 20, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"the folder .* does not exist; create it"):
        nads_grid(Scaled, {"decay": [1.0]}, POINT, 20, tmp_path / "no" / "folder")
