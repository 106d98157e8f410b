import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from pntk.errors import DataError
from pntk.representation import workers as module
from pntk.representation.directions import random_direction
from pntk.representation.fourier import fourier_map
from pntk.representation.landscape import loss_landscape
from pntk.representation.workers import Workers, worker_count

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads():
    """Give PyTorch a number of threads of which no worker's is one, and check it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 3


class Slow(nn.Module):
    """A network that keeps its inputs in itself while others may run."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        self.kept = self.norm(self.conv(x)).relu().mean((2, 3))
        time.sleep(1e-3)
        return self.last(self.kept)


def problem():
    torch.manual_seed(0)
    model = Slow().double()
    data = torch.rand(10, 1, 4, 4).double(), torch.arange(10) % 3
    model(data[0])
    return model.eval(), data


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("items", [1, 7])
def test_results_are_in_the_order_of_the_items(count, items):
    def work(worker, item):
        time.sleep(0.004 * (item % 3 == 0))
        return worker, item

    with Workers(count) as workers:
        assert workers.map(work, []) == []
        found = workers.map(work, range(items))
    assert found == [(item % count, item) for item in range(items)]


def test_each_worker_has_one_thread_without_gradients():
    both = threading.Barrier(2)

    def work(worker, item):
        both.wait(10)
        return threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    with Workers(2) as workers:
        found = workers.map(work, range(4))
        assert torch.get_num_threads() == 1
    assert len({ident for ident, *_ in found} | {threading.get_ident()}) == 3
    assert all(rest == [1, False] for _, *rest in found)
    both = threading.Barrier(1)
    with Workers(1) as workers:
        assert workers.map(work, range(2)) == [(threading.get_ident(), 3, True)] * 2


def test_an_error_stops_the_others_and_is_raised():
    busy = [threading.Lock(), threading.Lock()]
    begun = []

    def work(worker, item):
        assert busy[worker].acquire(blocking=False)
        try:
            begun.append(item)
            time.sleep(0.05 * (item % 2))
            if item == 2:
                raise KeyError("item 2")
        finally:
            busy[worker].release()
        return item

    with Workers(2) as workers:
        with pytest.raises(KeyError, match="item 2"):
            workers.map(work, range(100))
        assert len(begun) < 10
        assert workers.map(work, [4, 6, 8]) == [4, 6, 8]  # nobody is still at work


def test_threads_are_restored_after_an_error_in_the_block():
    with pytest.raises(RuntimeError, match="own"), Workers(2):
        raise RuntimeError("own")
    assert torch.get_num_threads() == 3


def test_how_many(monkeypatch):
    assert worker_count(nn.Linear(2, 2), CPU) == 3
    assert worker_count(nn.Linear(2, 2), torch.device("cuda")) == 1
    with torch.autocast("cpu"):
        assert worker_count(nn.Linear(2, 2), CPU) == 1
    monkeypatch.setattr(module, "SMALL", 5)
    assert worker_count(nn.Linear(2, 2), CPU) == 1


def with_threads(count, work):
    torch.set_num_threads(count)
    try:
        return work()
    finally:
        torch.set_num_threads(3)


@pytest.mark.parametrize("options", [{}, {"recompute_batchnorm": True}, {"chunk": 1}])
def test_landscape_is_the_same_for_any_number_of_threads(options):
    model, data = problem()
    x, y = random_direction(model, 0), random_direction(model, 1)

    def work():
        return loss_landscape(
            model, data, x, y, points=(3, 4), accuracy=True, batch_size=4, progress=False, **options
        )

    one, *others = (with_threads(count, work) for count in (1, 2, 3))
    assert len(np.unique(one.losses)) == 12
    for other in others:
        assert np.allclose(other.losses, one.losses, rtol=1e-12)
        assert np.array_equal(other.accuracies, one.accuracies)


@pytest.mark.parametrize("options", [{}, {"sign": "random"}])
def test_fourier_map_is_the_same_for_any_number_of_threads(options, monkeypatch):
    monkeypatch.setattr("pntk.representation.fourier.samples_at_once", lambda each: 5)
    model, data = problem()

    def work():
        return fourier_map(model, data, 2.0, criterion="loss", progress=False, **options)

    one, *others = (with_threads(count, work) for count in (1, 2, 3))
    assert len(np.unique(one.values)) > 8
    for other in others:
        assert np.allclose(other.values, one.values, rtol=1e-12)
        assert other.clean == pytest.approx(one.clean)


@pytest.mark.parametrize("run", ["landscape", "fourier"])
def test_an_error_in_a_worker_leaves_the_model_as_it_was(run):
    model, data = problem()
    model.train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def criterion(outputs, targets):
        if threading.current_thread() is not threading.main_thread():
            raise DataError("of a worker")
        return F.cross_entropy(outputs, targets)

    with pytest.raises(DataError, match="of a worker"):
        if run == "landscape":
            loss_landscape(
                model, data, random_direction(model), criterion=criterion, progress=False
            )
        else:
            fourier_map(model, data, criterion=criterion, progress=False)
    assert model.training and all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


class Read(Dataset):
    """Examples that say which threads read them, and how often."""

    def __init__(self, data):
        self.data, self.threads, self.reads = data, set(), 0

    def __len__(self):
        return len(self.data[1])

    def __getitem__(self, index):
        self.threads.add(threading.get_ident())
        self.reads += 1
        return self.data[0][index], self.data[1][index]


@pytest.mark.parametrize("budget", ["1GB", 1000])
def test_a_data_set_is_read_by_one_thread_and_once_if_it_fits(budget):
    model, data = problem()
    examples, x = Read(data), random_direction(model)
    options = {"points": 5, "batch_size": 4, "memory_budget": budget, "progress": False}
    found = loss_landscape(model, examples, x, **options)
    assert examples.threads == {threading.get_ident()}
    assert (examples.reads < 20) == (budget == "1GB")
    assert np.allclose(found.losses, loss_landscape(model, data, x, **options).losses)
