"""Models of fully_shard: two processes go through the scenarios below, and tests read how it went.

A scenario is a function ``two_...`` that both processes run; this file is also their script.
"""

import json
import os
import subprocess
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from pntk import Featurizer
from pntk.errors import ModelError, PntkWarning
from pntk.naming import fingerprint, select_parameters
from pntk.unsharded import unsharded

SECONDS = 120  # all scenarios take 10


class Cnn(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(4 * 9, 7),
            nn.Tanh(),
            nn.Linear(7, 3),
        )

    def score(self, x):  # by the layers, without the hooks of a call
        for layer in self:
            x = layer(x)
        return x.square().sum(1)


class Tied(nn.Module):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.last = nn.Linear(5, 1)  # its bias is whole on one process, and empty on others

    def forward(self, x):
        return self.last(self.second(self.norm(self.first(x)).tanh()))


class Noting(nn.Linear):
    """Keeps its weight a second time, as recurrent layers do."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "weight":
            self.__dict__["kept"] = [value]

    def forward(self, x):
        return nn.functional.linear(x, self.kept[0], self.bias)


class Recurrent(nn.Module):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.cells = nn.LSTM(4, 3, batch_first=True)
        self.last = Noting(3, 2)

    def forward(self, x):
        return self.last(self.cells(x)[0][:, -1])


INPUTS = {Cnn: (1, 8, 8), Tied: (5,), Recurrent: (6, 4)}
GROUPS = {Cnn: ("0", "2"), Tied: ("last",), Recurrent: ("cells",)}


def batches(kind, count=3):
    return torch.randn(count, 4, *INPUTS[kind])


def sharded(kind, **options):
    from torch.distributed.fsdp import fully_shard

    model = kind()
    for name in GROUPS[kind]:
        fully_shard(model.get_submodule(name), **options)
    return fully_shard(model, **options)


def mesh(*sizes):
    from torch.distributed.device_mesh import init_device_mesh

    names = ("outer", "inner")[-len(sizes) :]
    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


def rank():
    return torch.distributed.get_rank()


def settle():
    """Fail where a process sent something that the others did not: sums would not agree."""
    ones = torch.ones(1)
    torch.distributed.all_reduce(ones)
    assert ones == torch.distributed.get_world_size()


def assert_rows_of_the_plain_model(model, kind, **options):
    """Featurize on each process as many batches as its rank says, each with other data."""
    plain = kind()
    expected = Featurizer(plain, proj_dim=32, **options)
    with unsharded(model):
        found = Featurizer(model, proj_dim=32, **options)
        assert list(found.params) == list(expected.params)
        assert fingerprint(model) == fingerprint(plain)
        for batch in batches(kind, 1 + 2 * rank()):
            assert torch.equal(found(batch), expected(batch))
        rules = [[row["rule"] for row in made.coverage()] for made in (found, expected)]
        assert rules[0] == rules[1]
    settle()


def nothing(model):
    pass


def train(kind, between=nothing, prepare=nothing, **options):
    """Return the weights after two steps, whatever is between, and two more."""
    model = sharded(kind, **options)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    objects = list(model.parameters())
    prepare(model)
    torch.manual_seed(rank())
    for step, batch in enumerate(batches(kind, 4)):
        if step == 2:
            with torch.random.fork_rng():
                between(model)
            if between is not nothing:
                assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    return [p.full_tensor() for p in objects]


def assert_same_training(kind, between, **options):
    expected = train(kind, **options)
    found = train(kind, between, **options)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def featurize(model, kind):
    with unsharded(model):
        make = Featurizer(model, proj_dim=32)
        for batch in batches(kind, 1 + 2 * rank()):
            make(batch)


def two_rows_of_a_cnn():
    assert_rows_of_the_plain_model(sharded(Cnn), Cnn)


def two_rows_of_tied_weights():
    assert_rows_of_the_plain_model(sharded(Tied), Tied)


def two_rows_of_a_recurrent_layer():
    model = sharded(Recurrent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PntkWarning)  # vmap cannot go through it
        assert_rows_of_the_plain_model(model, Recurrent, params="cells.*")
    assert model.last.kept[0] is model.last.weight


def two_rows_by_torch_func():
    assert_rows_of_the_plain_model(sharded(Tied), Tied, fallback="*")


def two_rows_of_some_parameters():
    assert_rows_of_the_plain_model(sharded(Cnn), Cnn, params="2.*")


def two_rows_of_a_hybrid_mesh():
    for sizes in (1, 2), (2, 1):
        assert_rows_of_the_plain_model(sharded(Cnn, mesh=mesh(*sizes)), Cnn)


def two_rows_of_modules_that_share_a_group():
    from torch.distributed.fsdp import fully_shard

    model = Cnn()
    fully_shard([model[2], model[4]])
    assert_rows_of_the_plain_model(fully_shard(model), Cnn)
    found = model(batches(Cnn, 1)[0])
    assert found.shape == (4, 3)


def two_rows_of_replicas():
    replicate = pytest.importorskip("torch.distributed._composable.replicate_with_fsdp").replicate
    model = replicate(Cnn(), mesh=mesh(2))
    assert_rows_of_the_plain_model(model, Cnn)


def two_rows_of_the_weights_that_mixed_precision_rounds():
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(Cnn, mp_policy=policy)
    assert model(batches(Cnn, 1)[0]).dtype == torch.bfloat16
    assert_rows_of_the_plain_model(model, Cnn)
    assert_same_training(Cnn, lambda model: featurize(model, Cnn), mp_policy=policy)


def two_forward_methods():
    from torch.distributed.fsdp import register_fsdp_forward_method

    model, plain = sharded(Cnn), Cnn()
    register_fsdp_forward_method(model, "score")
    batch = batches(Cnn, 1)[0]

    def output(model, batch):
        return model.score(batch)

    expected = Featurizer(plain, output, proj_dim=32)(batch)
    with unsharded(model):
        found = Featurizer(model, output, proj_dim=32)
        for _ in range(1 + rank()):
            assert torch.equal(found(batch), expected)
    assert torch.equal(model.score(batch), plain.score(batch))


def two_training_goes_on():
    for kind in (Cnn, Tied):
        assert_same_training(kind, lambda model, kind=kind: featurize(model, kind))


def two_training_goes_on_with_other_settings():
    for reshard in (True, False):
        assert_same_training(
            Cnn, lambda model: featurize(model, Cnn), reshard_after_forward=reshard
        )


def two_training_goes_on_after_an_error_inside():
    def between(model):
        with pytest.raises(RuntimeError, match="inside"), unsharded(model):
            raise RuntimeError("inside")

    assert_same_training(Cnn, between)


def two_gradients_kept_over_the_context():
    def gradients(reshard, between):
        model = sharded(Cnn)
        objects = list(model.parameters())
        torch.manual_seed(rank())
        first, second = batches(Cnn, 2)
        model.set_requires_gradient_sync(False)
        model.set_reshard_after_backward(reshard)
        model(first).square().mean().backward()
        between(model)
        model.set_requires_gradient_sync(True)
        model(second).square().mean().backward()
        between(model)
        return [p.grad.full_tensor() for p in objects]

    for reshard in (True, False):
        expected = gradients(reshard, nothing)
        found = gradients(reshard, lambda model: featurize(model, Cnn))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def two_a_model_left_whole_by_a_forward_pass():
    model = sharded(Cnn, reshard_after_forward=False)
    with torch.no_grad():
        model(batches(Cnn, 1)[0])
    assert not any(hasattr(p, "full_tensor") for p in model.parameters())
    with pytest.raises(ModelError, match="FSDPCnn is an FSDP2 module; expected whole, plain"):
        Featurizer(model)
    assert_rows_of_the_plain_model(model, Cnn)
    assert_same_training(
        Cnn, lambda model: featurize(model, Cnn), prepare=lambda m: m(batches(Cnn, 1)[0])
    )


def two_contexts_in_each_other():
    model, plain = sharded(Cnn), Cnn()
    batch = batches(Cnn, 1)[0]
    with unsharded(model):
        make = Featurizer(model, proj_dim=32)
        with unsharded(model):
            make(batch)
        assert torch.equal(make(batch), Featurizer(plain, proj_dim=32)(batch))
    assert torch.equal(model(batch), plain(batch))


def two_frozen_parameters():
    model = sharded(Cnn)
    model[0].requires_grad_(False)
    with unsharded(model):
        make = Featurizer(model, proj_dim=32)
        assert list(make.params) == ["2.weight", "2.bias", "4.weight", "4.bias"]
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 4


def two_sharded_models_are_refused():
    model = sharded(Cnn)
    message = (
        r"FSDPCnn is an FSDP2 module with a DTensor \(Shard\(dim=0\),\) on a mesh of 2; expected "
        r"whole, plain parameters: .*`with pntk.unsharded\(model\):`"
    )
    with pytest.raises(ModelError, match=message):
        Featurizer(model)
    with pytest.raises(ModelError, match=message):
        fingerprint(model)
    with pytest.raises(ModelError, match="FSDPCnn '1' is an FSDP2 module with"):
        Featurizer(nn.Sequential(nn.Flatten(), model), params="1.4.*")


def two_a_featurizer_outlives_the_context():
    model, batch = sharded(Cnn), batches(Cnn, 1)[0]
    with unsharded(model):
        make = Featurizer(model, proj_dim=32)
        rows = make(batch)
    replaced = r"parameters of the model were replaced \(0.0.weight, .*make a new one"
    with pytest.raises(ModelError, match=replaced):
        make(batch)
    with unsharded(model):
        with pytest.raises(ModelError, match=replaced):
            make(batch)
        assert torch.equal(Featurizer(model, proj_dim=32)(batch), rows)


def two_tensor_parallel_models_are_refused():
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    by_styles = parallelize_module(Cnn(), mesh(2), {"2": ColwiseParallel()})
    by_hand = Cnn()
    by_hand[2].weight = nn.Parameter(distribute_tensor(by_hand[2].weight, mesh(2), [Shard(0)]))
    twice = by_styles = parallelize_module(Cnn(), mesh(1, 2)["inner"], {"2": ColwiseParallel()})
    fully_shard(twice, mesh=mesh(1, 2)["outer"])
    below = fully_shard(Cnn())
    outside = nn.Module()
    outside.inner, outside.weight = below, by_hand[2].weight
    spread = r"parameter {} is a DTensor \(Shard\(dim=0\),\) on a mesh of 2 that is not of"
    for model, message in (
        (by_styles, "Linear '2' is tensor parallel; expected a model that each"),
        (by_hand, spread.format("2.weight")),
        (twice, "Linear '2' is tensor parallel"),
        (outside, spread.format("weight")),
    ):
        with pytest.raises(ModelError, match=f"{message}.*full_tensor.*load it into a plain"):
            Featurizer(model)
        with pytest.raises(ModelError, match=message), unsharded(model):
            pass
    for module in twice.modules():  # as if its styles had needed no hooks
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    with pytest.raises(
        ModelError, match=r"parameter 2.weight is a DTensor .* of fully_shard alone"
    ):
        Featurizer(twice)


SCENARIOS = [name for name in dir() if name.startswith("two_")]


def run(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'group'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=SECONDS / 3),
    )
    outcomes = {}
    for name in SCENARIOS:
        torch.manual_seed(1 + rank)
        try:
            globals()[name]()
            settle()
            outcomes[name] = "passed"
        except BaseException:
            outcomes[name] = traceback.format_exc()
        (folder / f"{rank}.json").write_text(json.dumps(outcomes))
        if outcomes[name] != "passed":
            os._exit(1)  # and the other process sees its connection closed
    torch.distributed.destroy_process_group()


# ---- what pytest runs -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "error", __file__]
    both = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], env=environment)
        for rank in range(2)
    ]
    try:
        for process in both:
            process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        pass  # a scenario that has not ended is missing from its file
    finally:
        for process in both:
            process.kill()
            process.wait()
    files = [folder / f"{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("name", SCENARIOS)
def test_on_two_processes(outcomes, name):
    for rank, found in enumerate(outcomes):
        seen = found.get(name, "not reached: it hangs, or a scenario before it failed")
        if seen != "passed":
            pytest.fail(f"process {rank}: {seen}", pytrace=False)


@pytest.fixture
def process_group(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", [Cnn, Tied])
def test_a_group_of_one(process_group, kind):
    with pytest.raises(ModelError, match="on a mesh of 1; expected whole"):
        Featurizer(sharded(kind))
    assert_rows_of_the_plain_model(sharded(kind), kind)
    assert_same_training(kind, lambda model: featurize(model, kind))


def test_inside_inference_mode(process_group):
    model, batch = sharded(Cnn), batches(Cnn, 1)[0]
    expected = Featurizer(Cnn(), proj_dim=32)(batch)
    with torch.inference_mode(), unsharded(model):
        assert torch.equal(Featurizer(model, proj_dim=32)(batch), expected)
    model(batch).sum().backward()


def test_a_torch_whose_hooks_are_elsewhere(process_group, monkeypatch):
    module = sys.modules["pntk.unsharded"]  # as an attribute of pntk this may be the function
    monkeypatch.setattr(module, "_FSDP2", ("torch.elsewhere.",))
    message = "FSDPCnn has no forward hooks that pntk knows .* in torch [0-9.]+.*plain model"
    with pytest.raises(ModelError, match=message), unsharded(sharded(Cnn)):
        pass


def test_fsdp1_is_refused():
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    wrapped = fsdp.FullyShardedDataParallel.__new__(fsdp.FullyShardedDataParallel)
    nn.Module.__init__(wrapped)  # its own constructor wants a GPU
    wrapped._fsdp_wrapped_module = Cnn()
    message = "FullyShardedDataParallel is an FSDP1 module, .* full state dict .*plain model"
    with pytest.raises(ModelError, match=message):
        select_parameters(wrapped, None)
    with pytest.raises(ModelError, match=message), unsharded(wrapped):
        pass


def test_other_models_are_left_alone():
    model, batch = Cnn(), batches(Cnn, 1)[0]
    params = list(model.parameters())
    with unsharded(model):
        assert all(a is b for a, b in zip(params, model.parameters(), strict=True))
        make = Featurizer(model, proj_dim=32)
    make(batch)


def test_nothing_is_imported():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import pntk, pntk.unsharded, pntk.naming\n"
        "model = torch.nn.Linear(3, 1)\n"
        "with sys.modules['pntk.unsharded'].unsharded(model): pntk.Featurizer(model)\n"
        "new = [m for m in set(sys.modules) - before if m.startswith('torch.distributed')]\n"
        "assert not new, new"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
