import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pntk.errors import ConfigError, DataError, ModelError, PntkWarning, StoreError
from pntk.models import LeNet, ResNet18
from pntk.representation import landscape_plots
from pntk.representation.directions import between, random_direction
from pntk.representation.landscape import loss_landscape
from pntk.representation.landscape_file import Landscape
from pntk.representation.stacked import UnsupportedError, run_stacked


class Normed(nn.Module):
    """Convolutions, BatchNorm, a shortcut, both kinds of pooling."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.last = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Linear(4, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.a(x))), 2)
        x = x + torch.tanh(self.b(x))
        return self.last(F.adaptive_avg_pool2d(x, 1).flatten(1))


def problem(model=None, n=13):
    torch.manual_seed(1)
    model = (Normed() if model is None else model).double()
    for _ in range(3):
        model(torch.randn(8, 2, 6, 6, dtype=torch.float64))
    return model.eval(), (torch.randn(n, 2, 6, 6).double(), torch.randint(3, (n,)))


def plain(model, data, x, y, xs, ys):
    """Losses by load_state_dict."""
    found = np.zeros((len(xs), len(ys)))
    moved = copy.deepcopy(model).eval()
    for i, a in enumerate(xs):
        for j, b in enumerate(ys):
            state = {k: v.clone() for k, v in model.state_dict().items()}
            for name in x:
                state[name] += a * x[name] + b * y[name]
            moved.load_state_dict(state)
            with torch.no_grad():
                found[i, j] = F.cross_entropy(moved(data[0]), data[1])
    return found


def test_quadratic_in_closed_form():
    net = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    one, two = (torch.randn(1, 3, dtype=torch.float64) for _ in range(2))
    found = loss_landscape(
        net, (x, torch.zeros(5, 1).double()), {"weight": one}, {"weight": two},
        criterion=F.mse_loss, x_range=(-2, 1), y_range=(0, 3), points=(4, 3), progress=False,
    )  # fmt: skip
    assert found.x.tolist() == [-2, -1, 0, 1] and found.y.tolist() == [0, 1.5, 3]
    hessian = (x.T @ x / 5).numpy()
    for i, a in enumerate(found.x):
        for j, b in enumerate(found.y):
            w = (net.weight.detach() + a * one + b * two).numpy()[0]
            assert found.losses[i, j] == pytest.approx(w @ hessian @ w, rel=1e-12)


@pytest.mark.parametrize("together", [None, False, True])
def test_against_a_plain_loop(together):
    model, data = problem()
    x, y = random_direction(model, 0), random_direction(model, 1)
    before = copy.deepcopy(model.state_dict())
    model.train()
    found = loss_landscape(
        model, data, x, y, points=(3, 4), together=together, accuracy=True, progress=False
    )
    expected = plain(model, data, x, y, found.x, found.y)
    assert np.allclose(found.losses, expected, rtol=1e-10)
    assert model.training and model.norm.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    hits = (model.eval()(data[0]).argmax(1) == data[1]).double().mean()
    centre = loss_landscape(model, data, x, points=3, accuracy=True, together=together,
                            progress=False)  # fmt: skip
    assert centre.losses.shape == (3,) and centre.accuracies[1] == pytest.approx(float(hits))


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 5}, {"batch_size": 4},
                                     {"memory_budget": 1000}])  # fmt: skip
def test_independent_of_how_the_work_is_cut(options):
    model, data = problem()
    x, y = random_direction(model, 0), random_direction(model, 1)
    expected = loss_landscape(model, data, x, y, points=4, progress=False).losses
    found = loss_landscape(model, data, x, y, points=4, progress=False, **options).losses
    assert np.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("model", [LeNet(3, 2, 8), ResNet18(3, 2, width=4)])
def test_networks_of_the_package_run_stacked(model):
    model.eval()
    images = torch.randn(5, 2, 8, 8)
    direction = random_direction(model)
    states = [{k: p + a * direction[k] for k, p in model.named_parameters()} for a in (0.1, 0.7)]
    weights = {k: torch.stack([s[k].detach() for s in states]) for k in direction}
    with torch.no_grad():
        found = run_stacked(model, weights, (images,), {})
        for one, state in zip(found, states, strict=True):
            expected = torch.func.functional_call(model, state, images)
            assert torch.allclose(one, expected, rtol=1e-4, atol=1e-5)


def test_what_has_no_rule_goes_one_by_one():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    model = model.double().eval()
    data = torch.randn(7, 2, 6, 6).double(), torch.randint(3, (7,))
    x, y = random_direction(model, 0), random_direction(model, 1)
    weights = {k: v[None] for k, v in x.items()}
    with pytest.raises(UnsupportedError, match="layer_norm has no rule"):
        run_stacked(model, weights, (data[0],), {})
    found = loss_landscape(model, data, x, y, points=3, progress=False)
    assert not found.about["together"]
    assert np.allclose(found.losses, plain(model, data, x, y, found.x, found.y), rtol=1e-10)
    with pytest.raises(ConfigError, match=r"together=True and this model .*layer_norm"):
        loss_landscape(model, data, x, y, points=3, together=True, progress=False)


def test_between_moves_statistics_too():
    a, data = problem()
    b = problem(Normed())[0]
    with torch.no_grad():
        b.norm.running_mean.add_(1)
    found = loss_landscape(a, data, between(a, b), x_range=(0, 1), points=3, progress=False)
    with torch.no_grad():
        ends = [float(F.cross_entropy(m(data[0]), data[1])) for m in (a, b)]
    assert found.losses[[0, -1]] == pytest.approx(ends)


def test_recomputed_statistics():
    model, data = problem()
    x = random_direction(model)
    found = loss_landscape(
        model, data, x, points=3, recompute_batchnorm=True, batch_size=13, progress=False
    )
    with torch.no_grad():
        model.a.weight += x["a.weight"]
        model.b.weight += x["b.weight"]
        model.last.weight += x["last.weight"]
        model.norm.train()
        model.norm.momentum = 1.0  # the statistics of this one batch
        model(data[0])
        expected = float(F.cross_entropy(model.eval()(data[0]), data[1]))
    assert found.losses[-1] == pytest.approx(expected, rel=1e-10)


def test_resumes(tmp_path, monkeypatch):
    model, data = problem()
    x, y = random_direction(model, 0), random_direction(model, 1)
    path, calls = tmp_path / "land.npz", []

    def criterion(outputs, targets):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    monkeypatch.setattr("pntk.representation.landscape.describe", lambda criterion: "same")
    options = {"points": 3, "path": path, "together": False, "chunk": 1, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        loss_landscape(model, data, x, y, criterion=criterion, **options)
    with pytest.raises(StoreError, match="has 4 of 9 points"):
        Landscape.load(path)
    with pytest.raises(ConfigError, match="holds a landscape with other weights"):
        loss_landscape(problem(Normed())[0], data, x, y, criterion=criterion, **options)
    with pytest.raises(ConfigError, match="other directions"):
        loss_landscape(model, data, y, x, **options)
    with pytest.raises(ConfigError, match="other x, y"):
        loss_landscape(model, data, x, y, x_range=(0, 1), **options)
    found = loss_landscape(model, data, x, y, criterion=criterion, **options)
    assert len(calls) == 6 + 1 + 1 + 5  # each call tries once; then the points that were missing
    assert np.allclose(found.losses, plain(model, data, x, y, found.x, found.y), rtol=1e-10)
    loaded = Landscape.load(path)
    assert np.array_equal(loaded.losses, found.losses) and loaded.lowest == found.lowest
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="holds no landscape, or is damaged"):
        loss_landscape(model, data, x, y, **options)


def test_saved_whole(tmp_path):
    model, data = problem()
    x, y = random_direction(model, 0), random_direction(model, 1)
    found = loss_landscape(
        model, data, x, y, points=2, accuracy=True, trajectory=[[1, 2], [0, 0]], progress=False
    )
    found.save(tmp_path / "a.npz")
    again = Landscape.load(tmp_path / "a.npz")
    for name in ("x", "y", "losses", "accuracies", "trajectory"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    assert again.about == found.about
    with pytest.raises(ConfigError, match=r"ends in '\.pkl'; a landscape is kept in an \.npz"):
        found.save(tmp_path / "a.pkl")


def test_losses_that_are_not_finite_are_said_and_not_drawn():
    pytest.importorskip("matplotlib")
    model, data = problem()
    x = {k: v * 1e200 for k, v in random_direction(model).items()}
    with pytest.warns(PntkWarning, match=r"2 of 3 losses are NaN or infinite, the first at -1"):
        found = loss_landscape(model, data, x, points=3, together=False, progress=False)
    assert np.isfinite(found.losses).tolist() == [False, True, False] and found.lowest == (0.0,)
    assert found.plot_contour().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="none of the values is finite"):
        Landscape(found.x, None, np.full(3, np.nan)).plot_contour()


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    axis = np.linspace(-1, 1, 5)
    losses = axis[:, None] ** 2 + axis**2
    found = Landscape(axis, axis, losses, trajectory=np.array([[0.5, 0.5], [0, 0]]))
    png = found.plot_contour(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() == png
    assert found.plot_surface().startswith(b"\x89PNG")
    assert Landscape(axis, axis, losses * 0).plot_contour().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="a surface needs two directions"):
        Landscape(axis, None, axis).plot_surface()
    with pytest.raises(ConfigError, match="accuracies were not counted"):
        found.plot_contour(values="accuracy")
    with pytest.raises(ConfigError, match="values is 'x'"):
        found.plot_contour(values="x")
    with pytest.raises(ConfigError, match="a logarithm needs positive ones"):
        found.plot_contour(log=True)


def test_contours_are_at_round_values(monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(landscape_plots, "png", lambda figure: drawn.append(figure) or b"")
    axis = np.linspace(-1, 1, 5)
    losses = 0.137 + 3.71 * (axis[:, None] ** 2 + axis**2)
    Landscape(axis, axis, losses).plot_contour()
    levels = drawn[0].axes[0].collections[0].levels
    np.testing.assert_allclose(levels, np.arange(0, 7.76, 0.25))


ZERO = {"x_direction": lambda x: {k: v * 0 for k, v in x.items()}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x_range": (1, 0)}, r"x_range is \(1, 0\); expected \(low, high\)"),
        ({"x_range": (0, np.inf)}, "expected .low, high., finite"),
        ({"points": 1}, "points is 1; expected at least 2"),
        ({"points": (3, 3)}, "no y_direction; give one, or"),
        ({"chunk": 0}, "chunk is 0; expected an integer of at least 1"),
        ({"save_every": -1}, "save_every is -1"),
        ({"memory_budget": None}, "memory_budget is None"),
        ({"together": True, "recompute_batchnorm": True}, "leave one out"),
        ({"trajectory": [[0, 0]]}, "in a landscape of two directions"),
        (ZERO, "x_direction is zero everywhere"),
        ({"x_direction": lambda x: 3}, "x_direction is a int; expected a dict"),
        ({"x_direction": lambda x: {**x, "c": x["a.bias"]}}, "has c, which the model has not"),
        (
            {"x_direction": lambda x: {k: v for k, v in x.items() if k != "b.bias"}},
            "x_direction lacks b.bias; give each parameter its part",
        ),
        (
            {"x_direction": lambda x: {**x, "a.bias": torch.ones(5)}},
            r"x_direction\['a.bias'\] has shape \(5,\); expected \(4,\)",
        ),
        ({"x_direction": lambda x: {**x, "a.bias": x["a.bias"] + np.nan}}, "holds NaN"),
    ],
)
def test_errors(options, message):
    model, data = problem()
    x = random_direction(model)
    change = options.pop("x_direction", lambda x: x) if "x_direction" in options else lambda x: x
    with pytest.raises(ConfigError, match=message):
        loss_landscape(model, data, change(x), progress=False, **options)


def test_errors_of_data_and_models():
    model, data = problem()
    x = random_direction(model)
    with pytest.raises(DataError, match="the data has no targets"):
        loss_landscape(model, data[0], x, progress=False)
    with pytest.raises(DataError, match=r"the criterion returned shape \(2,\); expected one"):
        loss_landscape(
            model, data, x, criterion=nn.CrossEntropyLoss(reduction="none"), progress=False
        )
    with pytest.raises(DataError, match="accuracy is of classifiers"):
        onehot = F.one_hot(data[1], 3).double()
        loss_landscape(model, (data[0], onehot), x, accuracy=True, progress=False)
    with pytest.raises(ModelError, match="has no parameters"):
        loss_landscape(nn.ReLU(), data, {}, progress=False)
    plain_net = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()
    with pytest.raises(ConfigError, match="has no BatchNorm that keeps statistics"):
        loss_landscape(
            plain_net, data, random_direction(plain_net), recompute_batchnorm=True, progress=False
        )
