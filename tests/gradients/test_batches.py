"""Rows do not know how their batch was cut, in which precision the model runs, or its wrappers."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pntk import Featurizer
from pntk.memory import batch_that_fits

SAMPLES = 6


class Attention(nn.Module):
    """Tokens, positions, norms, and attention by hand."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.places = nn.Embedding(7, 8)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        h = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        q, k, v = self.qkv(self.norm(h)).chunk(3, dim=-1)
        h = h + torch.softmax(q @ k.transpose(1, 2), dim=-1) @ v
        return self.head(h.mean(1))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, groups=2),
        nn.GroupNorm(2, 8),
        nn.Flatten(),
        nn.Linear(72, 3),
    ).eval()


def mlp():
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3))


MODELS = {
    "mlp": (mlp, lambda: torch.randn(SAMPLES, 5)),
    "cnn": (cnn, lambda: torch.randn(SAMPLES, 2, 8, 8)),
    "attention": (Attention, lambda: torch.randint(0, 11, (SAMPLES, 7))),
}


@cache
def featurized(name, output="trace"):
    """A featurizer in float64, a batch, and its rows."""
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, batch = make().double(), inputs()
    batch = batch.double() if batch.is_floating_point() else batch
    featurizer = Featurizer(model, output, proj_dim=64)
    return featurizer, batch, featurizer(batch)


@pytest.mark.parametrize("name", MODELS)
@given(chosen=st.lists(st.integers(0, SAMPLES - 1), min_size=1, max_size=9))
def test_rows_depend_on_their_sample_alone(distance, name, chosen):
    featurizer, batch, rows = featurized(name)
    assert distance(featurizer(batch[chosen]), rows[chosen]) <= 1e-10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("output", ["pntk", "trace"])
def test_a_memory_budget_cuts_the_batch_and_changes_nothing(distance, name, output):
    featurizer, batch, rows = featurized(name, output)
    kept = 2 if output == "trace" else 1
    each = kept * featurizer._plan.sample_bytes + rows[0].numel() * rows.element_size()
    small = Featurizer(featurizer.model, output, proj_dim=64, memory_budget=4 * each * 2 + 8)
    small(batch[:2])
    assert batch_that_fits(small._plan, small._ready, SAMPLES, small.memory_budget) == 4
    assert distance(small(batch), rows) <= 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_the_first_batch_may_be_of_any_size(distance, name):
    featurizer, batch, rows = featurized(name)
    other = Featurizer(featurizer.model, "trace", proj_dim=64)
    assert distance(other(batch[:1]), rows[:1]) <= 1e-10
    assert distance(other(batch), rows) <= 1e-10


def test_sequences_of_any_length_after_the_first(distance, loop_rows):
    featurizer, batch, _ = featurized("attention")
    identity = Featurizer(featurizer.model, projection="identity")
    identity(batch)
    for length in (1, 4):
        short = batch[:3, :length]
        assert distance(identity(short), loop_rows(featurizer.model, short)) <= 1e-10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("fallback", [(), "*"])
def test_half_precision_models_have_float32_rows(distance, name, dtype, bound, fallback):
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, batch = make(), inputs()
    batch = batch.to(dtype) if batch.is_floating_point() else batch
    model = model.to(dtype)  # both models have the same, rounded weights
    found = Featurizer(model, proj_dim=256, fallback=fallback)(batch)
    assert found.dtype == torch.float32
    full = batch.float() if batch.is_floating_point() else batch
    expected = Featurizer(model.float(), proj_dim=256)(full)
    assert distance(found, expected) <= bound


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_close_to_float64(distance, name):
    featurizer, batch, rows = featurized(name)
    torch.manual_seed(0)
    model = MODELS[name][0]()
    model.load_state_dict(featurizer.model.state_dict())
    batch = batch.float() if batch.is_floating_point() else batch
    found = Featurizer(model, "trace", proj_dim=64)(batch)
    assert found.dtype == torch.float32 and distance(found, rows) <= 1e-5
    double = Featurizer(model, "trace", proj_dim=64, precision="fp64")(batch)
    assert double.dtype == torch.float64 and distance(double, rows) <= 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_the_gpu_makes_the_same_rows(distance, name):
    featurizer, batch, rows = featurized(name)
    make, _ = MODELS[name]
    model = make().double()
    model.load_state_dict(featurizer.model.state_dict())
    found = Featurizer(model.cuda().eval(), "trace", proj_dim=64)(batch.cuda())
    assert distance(found, rows) <= 1e-10


# ---- wrappers ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the compiler, which is imported and not run
def test_compiled_models_have_the_rows_of_the_bare_one():
    model, batch = mlp(), torch.randn(4, 5)
    expected = Featurizer(model, proj_dim=64)(batch)
    assert torch.equal(Featurizer(torch.compile(model), proj_dim=64)(batch), expected)


def test_data_parallel_models_have_the_rows_of_the_bare_one():
    model, batch = mlp(), torch.randn(4, 5)
    expected = Featurizer(model, proj_dim=64)(batch)
    assert torch.equal(Featurizer(nn.DataParallel(model), proj_dim=64)(batch), expected)


@pytest.fixture
def process_group(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_distributed_models_have_the_rows_of_the_bare_one(process_group):
    model, batch = mlp(), torch.randn(4, 5)
    expected = Featurizer(model, proj_dim=64)(batch)
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert torch.equal(Featurizer(wrapped, proj_dim=64)(batch), expected)


def test_wrapped_checkpoints_have_the_rows_of_the_bare_model(distance):
    wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    model, batch = mlp(), torch.randn(4, 5)
    bare = Featurizer(model, proj_dim=64)
    expected = bare(batch)
    model[2] = wrapper.checkpoint_wrapper(model[2])
    wrapped = Featurizer(model, proj_dim=64)
    assert distance(wrapped(batch), expected) <= 1e-6
    assert list(wrapped.params) == list(bare.params)


# ---- ambient modes ----------------------------------------------------------------------------


def test_inside_inference_mode():
    model, batch = mlp(), torch.randn(4, 5)
    expected = Featurizer(model, proj_dim=64)(batch)
    with torch.inference_mode():
        torch.testing.assert_close(Featurizer(model, proj_dim=64)(batch + 0), expected)


def test_under_autocast(distance):
    model, batch = mlp(), torch.randn(4, 5)
    expected = Featurizer(model, proj_dim=64)(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = Featurizer(model, proj_dim=64)(batch)
    assert found.dtype == torch.float32 and distance(found, expected) < 0.05
