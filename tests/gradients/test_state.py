"""A model is left as it was found, whatever happens in between."""

import dataclasses

import pytest
import torch
from torch import nn

from pntk import Featurizer
from pntk.gradients import plan, rules
from pntk.projection.hadamard import HadamardSketch


def make_model():
    model = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6), nn.ReLU()
    )
    model.add_module("head", Head())
    model.train()
    model[1].eval()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    model[0].bias.grad = torch.full_like(model[0].bias, 2)
    return model


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.scale


def state_of(model):
    return {
        "modes": [module.training for module in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "hooks": [
            (
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
            )
            for module in model.modules()
        ],
        "random": torch.get_rng_state(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "gradients on": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0, msg=lambda m, k=key: k)


class Interrupted(Exception):
    pass


def test_state_is_restored():
    model = make_model()
    before = state_of(model)
    assert before["fast path"]  # nor did an earlier test leave it off
    featurizer = Featurizer(model, "trace", proj_dim=64, params="*")
    featurizer(torch.randn(4, 5))
    before["random"] = torch.get_rng_state()
    featurizer(torch.ones(4, 5))
    featurizer.check(torch.ones(4, 5))
    assert_same(before, state_of(model))


@pytest.mark.parametrize("call", range(1, 12))
def test_state_is_restored_when_the_output_raises(call):
    """The output raises at its first, second, ... call: in the probe, a pass, or the check."""
    model = make_model()
    calls = 0

    def output(model, batch):
        nonlocal calls
        calls += 1
        values = model(batch).sum(1)
        if calls == call:
            torch.manual_seed(7)  # nor may this show
            raise Interrupted
        return values

    featurizer = Featurizer(model, output, proj_dim=64, params="*", fallback="3.*")
    batch = torch.randn(4, 5)
    before = state_of(model)
    with pytest.raises(Interrupted):
        featurizer.check(batch)
        featurizer(batch)
    assert_same(before, state_of(model))
    calls = 100
    expected = Featurizer(model, output, proj_dim=64, params="*")(batch)
    torch.testing.assert_close(featurizer(batch), expected, rtol=1e-4, atol=1e-5)


def test_state_is_restored_when_the_backward_pass_raises():
    model = make_model()

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise Interrupted

    before = state_of(model)
    featurizer = Featurizer(
        model, lambda m, x: Broken.apply(m(x).sum(1)), proj_dim=64, params="3.*", check=False
    )
    with pytest.raises(Interrupted):
        featurizer(torch.ones(4, 5))
    assert_same(before, state_of(model))


def test_rows_are_the_same_under_no_grad():
    model = nn.Linear(5, 3)
    batch = torch.randn(4, 5)
    expected = Featurizer(model, proj_dim=64)(batch)
    with torch.no_grad():
        assert torch.equal(Featurizer(model, proj_dim=64)(batch), expected)


def test_rows_have_no_graph_and_the_batch_gets_no_gradient():
    batch = torch.randn(4, 5, requires_grad=True)
    rows = Featurizer(nn.Linear(5, 3), proj_dim=64)(batch)
    assert not rows.requires_grad and batch.grad is None and batch.requires_grad


# ---- only what was asked for --------------------------------------------------------------------


def three_layers():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def test_layers_before_the_chosen_ones_get_no_hooks_and_no_graph():
    model, seen = three_layers(), {}

    def watch(index):
        def hook(module, args, output):
            seen[index] = (len(module._forward_hooks) > 1, output.requires_grad)

        return hook

    for index in (0, 2, 4):
        model[index].register_forward_hook(watch(index))
    featurizer = Featurizer(model, proj_dim=64, params="2.*")
    featurizer(torch.randn(4, 5))
    featurizer(torch.randn(4, 5))
    assert seen == {0: (False, False), 2: (True, True), 4: (False, True)}


def test_no_weight_gradient_is_made_by_autograd():
    model = three_layers()
    for p in model.parameters():
        p.register_hook(lambda grad: pytest.fail("a weight gradient was made"))
    Featurizer(model, proj_dim=64, check=False)(torch.randn(4, 5))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, {"2.weight", "2.bias", "4.weight", "4.bias"}),
        ("*", {f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}),
        ("0.*", {"0.weight", "0.bias"}),
        (["4.bias", "0.w*"], {"0.weight", "4.bias"}),
        (lambda name, p: p.dim() == 1, {"0.bias", "2.bias", "4.bias"}),
    ],
)
def test_chosen_parameters(loop_rows, distance, chosen, expected):
    model = three_layers().double()
    model[0].requires_grad_(False)
    batch = torch.randn(4, 5).double()
    featurizer = Featurizer(model, projection="identity", params=chosen)
    found = featurizer(batch)
    assert set(featurizer.params) == expected
    for name, p in model.named_parameters():
        p.requires_grad_(name in expected)
    assert distance(found, loop_rows(model, batch)) <= 1e-10


@pytest.mark.parametrize("family", ["hadamard", "normal"])
def test_rows_of_all_parameters_are_the_sum_of_those_of_each(distance, family):
    model, batch = three_layers().double(), torch.randn(4, 5).double()
    rows = Featurizer(model, projection=family, proj_dim=64)(batch)
    each = [
        Featurizer(model, projection=family, proj_dim=64, params=name)(batch)
        for name, _ in model.named_parameters()
    ]
    assert distance(sum(each), rows) <= 1e-12


@pytest.mark.parametrize(("output", "kept"), [("pntk", 0), ("trace", 1)])
def test_what_depends_on_the_input_is_made_once_for_all_outputs(monkeypatch, output, kept):
    """And kept only where there is another output to come."""
    made, seen = [], set()
    original = HadamardSketch.prepare_columns

    def prepare(sketch, columns):
        made.append(sketch.name)
        return original(sketch, columns)

    def watch(call, delta, targets):
        rules._linear(call, delta, targets)
        seen.add(len(call.kept))

    monkeypatch.setattr(HadamardSketch, "prepare_columns", prepare)
    table = dataclasses.replace(rules.RULES[0], contribute=watch)
    monkeypatch.setattr(plan, "find_rule", lambda m: table if table.matches(m) else None)
    featurizer = Featurizer(three_layers(), output, proj_dim=64, check=False, impl="torch")
    featurizer(torch.randn(4, 5))
    assert sorted(made) == ["0.weight", "2.weight", "4.weight"]
    assert seen == {kept}


def test_user_hooks_see_and_change_what_they_did_before(loop_rows, distance):
    model, batch = three_layers().double(), torch.randn(4, 5).double()
    model[2].register_forward_hook(lambda module, args, output: output * 3)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    found = Featurizer(model, projection="identity")(batch)
    assert distance(found, loop_rows(model, batch)) <= 1e-10


def test_hooks_that_step_an_optimizer_do_not_run(loop_rows, distance):
    model, batch = three_layers().double(), torch.randn(4, 5).double()
    expected, before = loop_rows(model, batch), [p.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: p.data.sub_(p.grad))
    own = list(model.parameters())
    assert distance(Featurizer(model, projection="identity")(batch), expected) <= 1e-10
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert all(p is q for p, q in zip(own, model.parameters(), strict=True))


def test_a_layer_called_in_one_pass_of_the_probe_alone():
    class Sometimes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.rarely = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.always(x) + (0 * self.rarely(x) if self.calls == 3 else 0)

    featurizer = Featurizer(Sometimes(), projection="identity", check=False)
    featurizer(torch.randn(4, 5))
    how = {row["name"]: row["module"] for row in featurizer.coverage()}
    assert how["rarely.weight"] == "rarely is not called in each forward pass"
