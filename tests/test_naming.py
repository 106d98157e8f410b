import pytest
import torch
from torch import nn

from pntk.errors import ConfigError, ModelError
from pntk.naming import canonical, fingerprint, named_parameters, select_parameters, unwrap


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def copy_of(model):
    other = net()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("layer1.weight", "layer1.weight"),
        ("_orig_mod.layer1.weight", "layer1.weight"),
        ("a._checkpoint_wrapped_module.b._orig_mod.weight", "a.b.weight"),
        ("_fsdp_wrapped_module", ""),
        ("module.weight", "module.weight"),  # may be anybody's name
    ],
)
def test_canonical(raw, expected):
    assert canonical(raw) == expected


@pytest.mark.filterwarnings("ignore")  # of the compiler, which is imported and not run
def test_unwrap():
    model = net()
    assert unwrap(model) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model
    assert unwrap(nn.DataParallel(torch.compile(model))) is model


def test_shared_parameters_have_one_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(named_parameters(model)) == ["0.weight", "0.bias", "1.bias"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, ["1.weight", "1.bias", "2.weight", "2.bias"]),
        ("*", ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]),
        ("0.*", ["0.weight", "0.bias"]),
        ("[02].bias", ["0.bias", "2.bias"]),
        (["2.*", "0.bias"], ["0.bias", "2.weight", "2.bias"]),
        (("1.*",), ["1.weight", "1.bias"]),
        (lambda name, p: p.dim() == 2, ["0.weight", "2.weight"]),
    ],
)
def test_selection_keeps_the_order_of_the_model(chosen, expected):
    model = net()
    model[0].requires_grad_(False)
    found = select_parameters(model, chosen)
    assert list(found) == expected
    assert all(found[name] is p for name, p in model.named_parameters() if name in found)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("3.*", r"params glob '3.\*' matches no parameter; near it: "),
        ("0.wieght", "matches no parameter; near it: 0.weight"),
        (["0.*", "x"], "params glob 'x' matches no parameter"),
        ([], "params is an empty list"),
        ([3], "params holds 3; expected globs such as"),
        (lambda name, p: False, "the params predicate selected none of 6 parameters"),
    ],
)
def test_selections_that_are_refused(chosen, message):
    with pytest.raises(ConfigError, match=message):
        select_parameters(net(), chosen)


def test_models_without_trainable_parameters():
    with pytest.raises(ModelError, match="Tanh has no parameters"):
        select_parameters(nn.Tanh(), None)
    with pytest.raises(ConfigError, match=r"all 6 parameters .* are frozen .*pass params='\*'"):
        select_parameters(net().requires_grad_(False), None)


def test_parameters_that_are_not_floating_point():
    model = net()
    model.table = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ModelError, match=r"parameter table is torch.int8; .*leave it out with params="
    ):
        select_parameters(model, "*")
    assert len(select_parameters(model, None)) == 6


def test_empty_parameters_are_left_out():
    model = net()
    model.nothing = nn.Parameter(torch.empty(0, 3))
    assert len(select_parameters(model, None)) == 6
    with pytest.raises(ConfigError, match=r"selected parameters \(nothing\) are empty"):
        select_parameters(model, "nothing")


def test_extra_state_is_no_weight():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    model, plain = Counting(3, 2), nn.Linear(3, 2)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "_extra_state"})
    assert fingerprint(model) == fingerprint(plain)


def test_a_fingerprint_changes_with_any_weight_or_buffer():
    model = net()
    seen = {fingerprint(model)}
    for name in model.state_dict():
        other = copy_of(model)
        value = other.state_dict()[name]
        with torch.no_grad():
            value.view(-1)[-1:].add_(1)
        seen.add(fingerprint(other))
    assert len(seen) == 1 + len(model.state_dict())


def test_a_fingerprint_does_not_change_with_mode_flags_or_gradients():
    model = net()
    expected = fingerprint(model)
    model.eval().requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    assert fingerprint(model) == expected == fingerprint(copy_of(model))


@pytest.mark.filterwarnings("ignore")
def test_a_fingerprint_does_not_change_with_wrappers():
    model = net()
    expected = fingerprint(model)
    assert fingerprint(torch.compile(model)) == expected
    outer, plain = nn.Sequential(torch.compile(net())), nn.Sequential(net())
    plain.load_state_dict({k.replace("_orig_mod.", ""): v for k, v in outer.state_dict().items()})
    assert fingerprint(outer) == fingerprint(plain)


def test_a_fingerprint_tells_types_shapes_and_names_apart():
    model = net()
    renamed = nn.Module()
    renamed.layers = model
    reshaped = nn.ParameterList([nn.Parameter(torch.zeros(2, 3))])
    other = nn.ParameterList([nn.Parameter(torch.zeros(3, 2))])
    assert fingerprint(model) != fingerprint(renamed)
    assert fingerprint(reshaped) != fingerprint(other)
    assert fingerprint(copy_of(model).bfloat16()) != fingerprint(model)
    assert len(fingerprint(copy_of(model).bfloat16())) == 32


def test_a_fingerprint_does_not_change_with_strides():
    model = net()
    expected = fingerprint(model)
    model[0].weight.data = model[0].weight.data.T.contiguous().T
    assert fingerprint(model) == expected
