"""Models of DDP: two processes go through the scenarios below, and tests read how it went.

A scenario is a function ``two_...`` that both processes run; this file is also their script.
"""

import json
import os
import subprocess
import sys
import traceback
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pntk import Featurizer
from pntk.errors import ModelError
from pntk.naming import fingerprint

SECONDS = 120  # all scenarios take 5


class Cnn(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),  # whose buffers every pass of the wrapper sends
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 36, 7),
            nn.Tanh(),
            nn.Linear(7, 3),
        )


class Tied(nn.Module):
    """Tied weights, and a layer that finds no use."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.first, self.second, self.spare = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.second(self.first(x).tanh()))


INPUTS = {Cnn: (1, 8, 8), Tied: (5,)}


def batches(kind, count, size=4):
    return torch.randn(count, size, *INPUTS[kind])


def nothing(model, kind):
    pass


def featurize(model, kind, **options):
    """Featurize on each process as many batches as its rank says, each with other data."""
    was = model.training
    model.eval()
    with torch.random.fork_rng():
        make = Featurizer(model, proj_dim=32, **options)
        for batch in batches(kind, 1 + 2 * torch.distributed.get_rank(), size=3):
            make(batch)
    model.train(was)


def train(kind, between, no_sync=False, **options):
    """Return all weights, buffers and gradients after two steps, whatever is between, and two."""
    model = DistributedDataParallel(kind(), **options)
    calls = []
    model.register_comm_hook(calls, counted)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    torch.manual_seed(torch.distributed.get_rank())
    for step, batch in enumerate(batches(kind, 4)):
        last = not no_sync or step == 3
        with nullcontext() if last else model.no_sync():
            model(batch).square().mean().backward()
        if last:
            optimizer.step()
        if step == 1:
            count = len(calls)
            between(model, kind)
            assert len(calls) == count
        if last and step < 3:
            optimizer.zero_grad()
    return [*model.state_dict().values(), *(p.grad for p in model.parameters())]


def counted(calls, bucket):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    calls.append(1)
    return allreduce_hook(None, bucket)


def assert_same_training(kind, between, **options):
    expected, found = (train(kind, what, **options) for what in (nothing, between))
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def two_rows_of_the_plain_model():
    for kind in (Cnn, Tied):
        plain = kind().eval()
        wrapped = DistributedDataParallel(kind().eval())
        expected, found = Featurizer(plain, proj_dim=32), Featurizer(wrapped, proj_dim=32)
        assert (
            list(found.params) == list(expected.params) == [n for n, _ in plain.named_parameters()]
        )
        assert fingerprint(found.model) == fingerprint(plain)
        for batch in batches(kind, 1 + 2 * torch.distributed.get_rank(), size=3):
            assert torch.equal(found(batch), expected(batch))
        assert str(found.coverage()) == str(expected.coverage())


def two_training_goes_on():
    assert_same_training(Cnn, featurize)


def two_training_goes_on_with_parameters_without_use():
    assert_same_training(Tied, featurize, find_unused_parameters=True)


def two_training_goes_on_with_gradients_that_are_views_of_buckets():
    assert_same_training(Cnn, featurize, gradient_as_bucket_view=True)


def two_training_goes_on_in_a_static_graph():
    assert_same_training(Cnn, featurize, static_graph=True)


def two_gradients_that_accumulate_are_kept():
    assert_same_training(Cnn, featurize, no_sync=True)


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
            torch.distributed.barrier()
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


def test_around_a_part_of_the_model(process_group):
    model = nn.Sequential(nn.Flatten(), DistributedDataParallel(nn.Linear(6, 2)))
    message = (
        "1 is a DistributedDataParallel inside the model; expected it around the whole model: "
        "put its .module in its place"
    )
    with pytest.raises(ModelError, match=message):
        Featurizer(model)
    model[1] = model[1].module
    assert Featurizer(model, proj_dim=8)(torch.randn(3, 2, 3)).shape == (3, 8)


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
