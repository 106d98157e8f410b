import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pntk import Featurizer, empirical_ntk
from pntk.errors import ConfigError, DataError
from pntk.ntk import residuals
from pntk.ntk.pilot import cosines
from pntk.ntk.residuals import LAWS, cdf, residual_study


@pytest.fixture(scope="module")
def network():
    """A network of 467 parameters, and 30 samples."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    return model, torch.randn(30, 5)


@pytest.fixture(scope="module")
def study(network):
    model, x = network
    return residual_study(
        model, x, projection="rademacher", proj_dims=(256, 16, 64), seeds=12, samples=30
    )


# ---- residuals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trace", "pntk"])
@pytest.mark.parametrize("family", ["hadamard", "normal"])
def test_residuals_are_those_of_a_featurizers_rows(network, kind, family):
    model, x = network
    found = residual_study(
        model, x, kind=kind, projection=family, proj_dims=(32,), seeds=2, precision="fp64"
    )
    exact = cosines(empirical_ntk(model, x, kind=kind, precision="fp64"))
    torch.testing.assert_close(found.cosines, exact)
    for seed in range(2):
        rows = Featurizer(model, kind, family, 32, seed, precision="fp64")(x)
        expected = (cosines(rows @ rows.T) - exact).abs()
        torch.testing.assert_close(found.levels[0].values[seed], expected)


def test_levels(study):
    assert [level.proj_dim for level in study.levels] == [16, 64, 256]
    assert (study.samples, study.seeds, study.params) == (30, 12, 419)
    for level in study.levels:
        assert level.values.shape == (12, 435)
        assert level.mean.value == pytest.approx(float(level.values.mean()))
        per_seed = level.values.mean(1)
        assert level.mean.std == pytest.approx(float(per_seed.std() / math.sqrt(12)))
        assert level.a.value == pytest.approx(level.proj_dim * level.mean.value)
        assert level.a.std == pytest.approx(level.proj_dim * level.mean.std)
        expected = float(level.values.flatten().quantile(0.95))
        assert level.quantiles[0.95].value == pytest.approx(expected)
        assert list(level.distances) == list(LAWS)


def test_error_falls_as_the_root_of_the_width(study):
    means = torch.tensor([level.mean.value for level in study.levels])
    x = torch.tensor([16.0, 64, 256]).log()
    slope = torch.linalg.lstsq(torch.stack([x, torch.ones(3)], 1), means.log()[:, None]).solution
    assert study.exponent.value == pytest.approx(-float(slope[0]), rel=1e-4)
    assert study.exponent.value == pytest.approx(0.5, abs=4 * study.exponent.std)
    assert study.exponent.std < 0.05
    for level in study.levels[1:]:
        scaled, std = (math.sqrt(level.proj_dim) * x for x in (level.mean.value, level.mean.std))
        assert scaled == pytest.approx(study.expected, abs=4 * std)
    # and so a is no constant
    assert study.levels[2].a.value > 3 * study.levels[0].a.value


def test_one_width_has_no_exponent(network):
    model, x = network
    found = residual_study(model, x, proj_dims=[64], seeds=2)
    assert found.exponent is None and found.to_dict()["exponent"] is None
    assert "k^-b" not in str(found)


@pytest.mark.parametrize("labelled", [True, False])
def test_any_data(network, labelled):
    model, x = network
    plain = residual_study(model, x, proj_dims=(64,), seeds=2, samples=10)
    tensors = (x, torch.zeros(30, dtype=torch.long)) if labelled else (x,)
    loader = DataLoader(TensorDataset(*tensors), batch_size=4)
    for data in (tensors, loader, TensorDataset(*tensors)):
        found = residual_study(model, data, proj_dims=(64,), seeds=2, samples=10)
        torch.testing.assert_close(found.levels[0].values, plain.levels[0].values)
    assert plain.samples == 10


def test_parameters_and_output_of_choice(network):
    model, x = network
    found = residual_study(
        model, x, params="4.*", output=lambda m, b: m(b).square(), proj_dims=(64,), seeds=2
    )
    exact = empirical_ntk(model, x, params="4.*", output=lambda m, b: m(b).square())
    torch.testing.assert_close(found.cosines, cosines(exact.double()))
    assert found.params == 51


def test_model_is_left_alone_and_seeds_repeat(network):
    model, x = network
    state = torch.get_rng_state()
    one, two = (residual_study(model, x, proj_dims=(64,), seeds=2) for _ in range(2))
    assert torch.equal(one.levels[0].values, two.levels[0].values)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_samples_without_a_gradient_are_left_out(network):
    _, x = network
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 2, bias=False))
    some = x.clone()
    some[[2, 5]] = 0
    assert residual_study(model, some, proj_dims=(64,), seeds=2).samples == 28


# ---- laws --------------------------------------------------------------------------------------


def draws(law, of_pairs, seeds=40):
    generator = torch.Generator().manual_seed(0)
    shape = seeds, len(of_pairs)
    if law == "exponential":
        return torch.empty(shape, dtype=torch.float64).exponential_(3.0, generator=generator)
    normal = torch.randn(shape, dtype=torch.float64, generator=generator).abs()
    return normal / 7 * ((1 - of_pairs.square()) if law == "mixture" else 1)


@pytest.mark.parametrize("law", LAWS)
def test_the_law_that_residuals_have_is_recognised(law):
    of_pairs = torch.linspace(-0.2, 0.999, 400, dtype=torch.float64)
    level = residuals._level(64, draws(law, of_pairs), of_pairs)
    assert min(level.distances, key=lambda name: level.distances[name].value) == law
    assert level.distances[law].value < 0.015
    assert all(level.distances[name].value > 0.02 for name in LAWS if name != law)


def test_distance_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    of_pairs = torch.zeros(300, dtype=torch.float64)
    values = draws("exponential", of_pairs, seeds=2)
    level = residuals._level(64, values, of_pairs)
    flat = values.flatten().numpy()
    expected = stats.kstest(flat, stats.expon(scale=flat.mean()).cdf).statistic
    assert level.distances["exponential"].value == pytest.approx(expected)
    expected = stats.kstest(flat, stats.halfnorm(scale=(flat**2).mean() ** 0.5).cdf).statistic
    assert level.distances["half-normal"].value == pytest.approx(expected)
    # all cosines zero: the mixture is of one half-normal
    assert level.distances["mixture"].value == pytest.approx(expected)


def test_many_residuals_are_thinned_without_harm(monkeypatch):
    of_pairs = torch.linspace(0, 0.99, 1000, dtype=torch.float64)
    values = draws("mixture", of_pairs, seeds=6)
    found = residuals._level(64, values, of_pairs)
    monkeypatch.setattr(residuals, "_POINTS", 10**6)
    monkeypatch.setattr(residuals, "_SCALES", 10**6)
    whole = residuals._level(64, values, of_pairs)
    for law in LAWS:
        expected = whole.distances[law].value
        assert found.distances[law].value == pytest.approx(expected, abs=1e-3)


def test_mixture_has_the_second_moment_and_rises_from_0_to_1():
    of_pairs = torch.linspace(-1, 1, 100, dtype=torch.float64)
    values = draws("half-normal", of_pairs)
    x = torch.linspace(0, 4, 20_001, dtype=torch.float64)
    at = cdf("mixture", x, values, of_pairs)
    assert float(at[0]) == 0 and float(at[1]) > 0.02  # two pairs have no error
    assert float(at[-1]) == pytest.approx(1, abs=1e-6)
    second = 2 * torch.trapezoid(x * (1 - at), x)  # E x^2
    assert float(second) == pytest.approx(float(values.square().mean()), rel=1e-3)
    with pytest.raises(ConfigError, match="unknown law 'cauchy'; expected one of exponential"):
        cdf("cauchy", x, values, of_pairs)


# ---- printing ----------------------------------------------------------------------------------


def test_prints_as_a_table(study):
    lines = str(study).splitlines()
    assert lines[0].startswith(
        "trace, rademacher: 419 parameters, 30 samples (435 pairs), 12 seeds"
    )
    assert "KS exponential" in lines[1] and "sqrt(k) mean" in lines[1]
    assert [line.split()[0] for line in lines[2:5]] == ["16", "64", "256"]
    assert len({len(line) for line in lines[1:5]}) == 1
    assert lines[5].startswith(f"sqrt(k) mean is {study.expected:.3g} where")
    assert lines[6].startswith("mean |d| ~ k^-b with b = 0.")


def test_dict_is_json(study):
    found = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert found["pairs"] == 435 and found["seeds"] == 12 and found["kind"] == "trace"
    level = found["levels"][1]
    assert level["proj_dim"] == 64 and set(level["distances"]) == set(LAWS)
    assert level["mean"] == {
        "value": study.levels[1].mean.value,
        "std": study.levels[1].mean.std,
    }
    assert list(level["quantiles"]) == ["0.5", "0.9", "0.95", "0.99"]
    assert found["expected"] == study.expected
    assert found["exponent"]["value"] == study.exponent.value


def test_progress_is_shown_on_request(network, capsys):
    model, x = network
    residual_study(model, x, proj_dims=(16, 64), seeds=2)
    assert not capsys.readouterr().err
    residual_study(model, x, proj_dims=(16, 64), seeds=2, progress=True)
    assert "4/4" in capsys.readouterr().err


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "full"}, "unknown kind 'full'; expected one of trace, pntk"),
        ({"projection": "identity"}, "'identity', whose cosines are the exact ones"),
        ({"projection": "sparse"}, "unknown projection 'sparse'"),
        ({"proj_dims": ()}, r"proj_dims is \(\); expected different widths"),
        ({"proj_dims": (64, 64)}, r"proj_dims is \(64, 64\); expected different widths"),
        ({"proj_dims": 64}, "proj_dims is 64; expected different widths"),
        ({"proj_dims": "64"}, "proj_dims is '64'; expected different widths"),
        ({"proj_dims": (64, 100)}, "hadamard needs a power of two: 64 or 128"),
        ({"seeds": 1}, "seeds is 1; expected an integer of at least 2, for standard errors"),
        ({"seeds": True}, "seeds is True; expected an integer"),
        ({"seeds": 2.0}, r"seeds is 2\.0; expected an integer"),
        ({"samples": 7}, "samples is 7; expected an integer of at least 8"),
        ({"memory_budget": None}, "memory_budget is None"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"params": "absent"}, "absent"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(network, options, message):
    model, _ = network
    with pytest.raises(ConfigError, match=message):
        residual_study(model, None, **options)


def test_no_model():
    with pytest.raises(ConfigError, match=r"model is a int; expected a torch\.nn\.Module"):
        residual_study(3, torch.zeros(9, 2))


def test_samples_that_tell_nothing(network):
    model, x = network
    with pytest.raises(DataError, match="5 of 5 samples have a gradient other than zero"):
        residual_study(model, x[:5])
    one = nn.Linear(1, 1, bias=False)
    with pytest.raises(DataError, match="all 30 gradients are parallel"):
        residual_study(one, x[:, :1])
    broken = x.clone()
    broken[12] = math.nan
    with (
        pytest.warns(UserWarning, match="NaN or infinite"),
        pytest.raises(DataError, match=r"gradient of sample 12 holds NaN or .* \(1 such"),
    ):
        residual_study(model, broken)
