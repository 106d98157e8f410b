"""The self-checks go off when rows are wrong, and only then."""

import dataclasses

import pytest
import torch
from torch import nn

from pntk import Featurizer
from pntk.errors import CheckError, PntkWarning
from pntk.gradients import plan, rules


def model():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


def break_rule(monkeypatch, name, contribute):
    table = [
        dataclasses.replace(rule, contribute=contribute) if rule.name == name else rule
        for rule in rules.RULES
    ]
    found = lambda module: next((rule for rule in table if rule.matches(module)), None)  # noqa: E731
    monkeypatch.setattr(plan, "find_rule", found)


def without_bias(call, delta, targets):
    rules._feature_norm(call, delta, {k: t for k, t in targets.items() if k != "bias"})


def doubled(call, delta, targets):
    rules._feature_norm(call, 1.01 * delta, targets)


@pytest.mark.parametrize(
    ("contribute", "parameter"), [(without_bias, r"2\.bias"), (doubled, r"2\.(weight|bias)")]
)
def test_a_wrong_rule_is_found_out(monkeypatch, contribute, parameter):
    break_rule(monkeypatch, "layer norm", contribute)
    message = rf"gradients of {parameter} do not add up .*pass fallback=\['{parameter}'\]"
    with pytest.raises(CheckError, match=message):
        Featurizer(model(), proj_dim=64)(torch.randn(4, 5))


def test_the_remedy_works(monkeypatch):
    batch = torch.randn(4, 5)
    torch.manual_seed(3)
    expected = Featurizer(model(), proj_dim=64)(batch)
    break_rule(monkeypatch, "layer norm", without_bias)
    torch.manual_seed(3)
    found = Featurizer(model(), proj_dim=64, fallback=["2.bias"])(batch)
    torch.testing.assert_close(found, expected)


def test_the_check_can_be_left_out_and_asked_for(monkeypatch):
    break_rule(monkeypatch, "layer norm", without_bias)
    featurizer = Featurizer(model(), proj_dim=64, check=False)
    batch = torch.randn(4, 5)
    assert featurizer(batch).shape == (4, 64)
    with pytest.raises(CheckError, match=r"2\.bias"):
        featurizer.check(batch)


def test_a_failed_check_fails_again(monkeypatch):
    break_rule(monkeypatch, "layer norm", without_bias)
    featurizer = Featurizer(model(), proj_dim=64)
    for _ in range(2):
        with pytest.raises(CheckError):
            featurizer(torch.randn(4, 5))


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 6)
        self.b = nn.Linear(6, 3)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(h - h.mean(0))


def test_a_model_that_mixes_samples_is_found_out():
    message = r"the row of sample 3 changes with the batch it travels in .* mixes samples"
    with pytest.raises(CheckError, match=message):
        Featurizer(Centred(), proj_dim=64)(torch.randn(4, 5))


def test_a_model_without_rules_that_mixes_samples_is_not_sent_to_the_fallback():
    with pytest.raises(CheckError, match="mixes samples"):
        Featurizer(Centred(), proj_dim=64, fallback="*")(torch.randn(4, 5))


def test_a_weight_that_is_also_used_by_a_function_is_found_out():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 5)

        def forward(self, x):
            return torch.tanh(self.a(x)) @ self.a.weight

    batch = torch.randn(4, 5)
    torch.manual_seed(1)
    model = Twice()
    with pytest.raises(CheckError, match=r"a\.weight.*uses the weight in a way that no rule sees"):
        Featurizer(model, proj_dim=64)(batch)
    rows = Featurizer(model, proj_dim=64, fallback=["a.weight"])(batch)
    assert rows.isfinite().all()


@pytest.mark.parametrize("family", ["hadamard", "rademacher", "normal", "identity"])
@pytest.mark.parametrize("output", ["pntk", "trace"])
def test_good_rows_pass(family, output):
    options = {} if family == "identity" else {"proj_dim": 64}
    featurizer = Featurizer(model(), output, family, **options)
    featurizer.check(torch.randn(3, 5))


def test_zero_gradients_pass_with_a_warning():
    zero = nn.Linear(5, 3)
    with pytest.warns(PntkWarning, match="all gradients of 3 samples are exactly zero"):
        Featurizer(zero, lambda m, x: 0 * m(x).sum(1), proj_dim=64).check(torch.randn(3, 5))


def test_gradients_that_are_all_zero_are_pointed_out():
    class OneOfTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 3)
            self.b = nn.Linear(5, 3)

        def forward(self, x):
            return self.a(x)

    with pytest.warns(PntkWarning, match="all gradients of 4 samples are exactly zero"):
        rows = Featurizer(OneOfTwo(), proj_dim=64, params="b.*")(torch.randn(4, 5))
    assert not rows.any()
