"""What torch.func serves, vectorised or one sample at a time."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pntk import Featurizer
from pntk.errors import PntkWarning


class Scale(nn.Module):
    """Three layers and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 6)
        self.scale = nn.Parameter(torch.randn(6))
        self.b = nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.scale * torch.tanh(self.a(x)))


class Looped(Scale):
    """Control flow that depends on the data, which vmap cannot follow."""

    def forward(self, x):
        h = torch.tanh(self.a(x))
        for _ in range(2):
            if float(h.detach().sum()) < 1e9:
                h = self.scale * h
        return self.b(h)


class Checkpointed(Scale):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        return checkpoint(lambda h: self.b(torch.tanh(self.scale * h)), h, use_reentrant=False)


def test_only_what_has_no_rule_goes_there():
    featurizer = Featurizer(Scale(), proj_dim=64)
    featurizer(torch.randn(4, 5))
    rules = {row["name"]: row["rule"] for row in featurizer.coverage()}
    assert rules.pop("scale") == "torch.func"
    assert set(rules.values()) == {"linear"}


def test_control_flow_goes_one_sample_at_a_time_with_one_warning(loop_rows, distance):
    model, batch = Looped().double(), torch.randn(4, 5).double()
    featurizer = Featurizer(model, "trace", "identity")
    message = "torch.func.vmap cannot vectorise Looped for scale .* 1 parameters without a rule"
    with pytest.warns(PntkWarning, match=message) as caught:
        found = featurizer(batch)
    assert len(caught) == 1
    assert distance(found, loop_rows(model, batch, "trace")) <= 1e-10
    featurizer(batch)  # pytest turns a second warning into an error


def test_unused_parameters_get_zeros(loop_rows, distance):
    class Unused(Scale):
        def forward(self, x):
            return torch.tanh(self.a(x))

    model, batch = Unused().double(), torch.randn(4, 5).double()
    featurizer = Featurizer(model, projection="identity")
    assert distance(featurizer(batch), loop_rows(model, batch)) <= 1e-10
    module = {row["name"]: row["module"] for row in featurizer.coverage()}
    assert module["b.weight"] == "b is not called in the forward pass"


@pytest.mark.parametrize("samples", [1, 7])
def test_small_workspaces_cut_the_batch(distance, samples):
    model, batch = Scale().double(), torch.randn(samples, 5).double()
    whole = Featurizer(model, proj_dim=64)
    expected = whole(batch)
    whole._fallback.workspace = 1
    assert distance(whole(batch), expected) <= 1e-12


@pytest.mark.parametrize("output", ["margin", "loss"])
def test_labels_stay_vectorised(distance, output):
    model = Scale().double()
    batch = (torch.randn(4, 5).double(), torch.tensor([0, 2, 1, 2]))
    func = Featurizer(model, output, proj_dim=64, fallback="*")
    found = func(batch)  # pytest turns the warning about single samples into an error
    for n in range(4):
        one = (batch[0][n : n + 1], batch[1][n : n + 1])
        assert distance(func(one)[0], found[n]) <= 1e-10


def test_checkpointed_bare_parameters(loop_rows, distance):
    model, batch = Checkpointed().double(), torch.randn(4, 5).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PntkWarning)
        found = Featurizer(model, projection="identity")(batch)
    assert distance(found, loop_rows(model, batch)) <= 1e-10


def test_sparse_embedding(loop_rows, distance):
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2)).double()
    batch = torch.randint(0, 9, (4, 3))
    found = Featurizer(model, projection="identity", check=False)(batch)
    assert distance(found, loop_rows(model, batch)) <= 1e-10


def test_sparse_embedding_passes_its_check():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2))
    Featurizer(model, proj_dim=64).check(torch.randint(0, 9, (4, 3)))


def test_empty_parameters_add_nothing():
    model = nn.Linear(5, 3)
    batch = torch.randn(4, 5)
    expected = Featurizer(model, proj_dim=64)(batch)
    model.nothing = nn.Parameter(torch.empty(0))
    assert torch.equal(Featurizer(model, proj_dim=64)(batch), expected)
