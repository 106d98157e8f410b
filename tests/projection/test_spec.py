import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pntk.errors import ConfigError, PntkError
from pntk.projection import FAMILIES, ProjectionSpec


@pytest.mark.parametrize("family", ["hadamard", "rademacher", "normal"])
def test_default_dimension(family):
    assert ProjectionSpec(family).proj_dim == 4096


def test_default_family_and_seed():
    assert ProjectionSpec() == ProjectionSpec("hadamard", 4096, 0)
    assert ProjectionSpec("identity").proj_dim is None


@given(
    family=st.sampled_from(["hadamard", "rademacher", "normal"]),
    log_k=st.integers(3, 20),
    seed=st.integers(0, 2**64 - 1),
)
def test_json_round_trip(family, log_k, seed):
    spec = ProjectionSpec(family, 2**log_k, seed)
    assert ProjectionSpec.from_json(spec.to_json()) == spec
    assert hash(ProjectionSpec.from_json(spec.to_json())) == hash(spec)


def test_json_round_trip_of_the_identity():
    spec = ProjectionSpec("identity")
    assert ProjectionSpec.from_json(spec.to_json()) == spec
    assert spec.to_dict() == {"family": "identity", "proj_dim": None, "seed": 0}


def test_specs_are_values():
    specs = {ProjectionSpec(family, 64 if family != "identity" else None) for family in FAMILIES}
    specs |= {ProjectionSpec("hadamard", 64, 1), ProjectionSpec("hadamard", 128)}
    assert len(specs) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        ProjectionSpec().seed = 1


@pytest.mark.parametrize("k", [1, 13, 130])
def test_dense_families_take_any_dimension(k):
    assert ProjectionSpec("rademacher", k).proj_dim == ProjectionSpec("normal", k).proj_dim == k


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sjlt",), r"unknown projection 'sjlt'; expected one of hadamard, rademacher, normal"),
        (("hadamard", 100), r"proj_dim is 100; hadamard needs a power of two: 64 or 128"),
        (("hadamard", 4), r"proj_dim is 4; hadamard needs a power of two, at least 8"),
        (("hadamard", 0), r"proj_dim is 0; expected at least 1"),
        (("normal", -3), r"proj_dim is -3; expected at least 1"),
        (("hadamard", 64.0), r"proj_dim is 64.0; expected an integer of at least 1"),
        (("hadamard", True), r"proj_dim is True; expected an integer"),
        (("rademacher", "64"), r"proj_dim is '64'; expected an integer"),
        (("identity", 64), r"proj_dim is 64 for the identity; .* leave proj_dim out"),
        (("hadamard", 64, -1), r"seed is -1; expected 0 to 2\^64 - 1"),
        (("hadamard", 64, 2**64), r"seed is 18446744073709551616; expected 0 to"),
        (("hadamard", 64, 1.5), r"seed is 1.5; expected an integer"),
        (("hadamard", 64, False), r"seed is False; expected an integer"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ProjectionSpec(*arguments)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, PntkError)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"width": 3}', '{"family": "sjlt"}'])
def test_from_json_refuses_what_is_not_a_spec(text):
    with pytest.raises(ConfigError, match=r"cannot read a projection spec|unknown projection"):
        ProjectionSpec.from_json(text)
