from collections import UserDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch

from pntk.batch import (
    batch_size,
    check_device,
    repeat_first,
    split,
    take,
    tensors,
    to_device,
    tree_map,
)
from pntk.errors import DataError

X, Y = torch.arange(12.0).view(4, 3), torch.arange(4)
Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Example:
    x: torch.Tensor
    label: torch.Tensor
    name: str = "none"
    count: int = field(init=False, default=0)


NESTED = {"a": [X, (Y, "text")], "b": Pair(X, None), "c": Example(X, Y), "d": 3, "e": UserDict(z=Y)}


def test_tree_map_keeps_the_nesting():
    found = tree_map(lambda t: t + 1, NESTED)
    assert torch.equal(found["a"][0], X + 1) and found["a"][1][1] == "text"
    assert isinstance(found["a"], list) and isinstance(found["a"][1], tuple)
    assert isinstance(found["b"], Pair) and found["b"].y is None
    assert isinstance(found["c"], Example) and torch.equal(found["c"].label, Y + 1)
    assert found["d"] == 3 and type(found["e"]) is dict and torch.equal(found["e"]["z"], Y + 1)
    assert torch.equal(NESTED["c"].x, X)


def test_tensors_come_in_order():
    assert [t.dtype for t in tensors(NESTED)] == [
        X.dtype,
        Y.dtype,
        X.dtype,
        X.dtype,
        Y.dtype,
        Y.dtype,
    ]


@pytest.mark.parametrize(
    "batch", [X, (X, Y), NESTED, Example(X, Y)], ids=lambda b: type(b).__name__
)
def test_batch_size(batch):
    assert batch_size(batch) == 4


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y[:3]), r"have \[4, 3\] as first dimensions; expected one batch size"),
        ((X, torch.tensor(1.0)), "holds a tensor without dimensions"),
        (["text"], "the batch is a list without tensors; expected a tensor"),
        (None, "the batch is a NoneType without tensors"),
        (X[:0], "the batch is empty; expected at least one sample"),
    ],
)
def test_batch_sizes_that_are_refused(batch, message):
    with pytest.raises(DataError, match=message):
        batch_size(batch)


@pytest.mark.parametrize("part", [slice(1, 3), torch.tensor([3, 0])])
def test_take(part):
    found = take({"x": X, "rest": (Y, "text")}, part)
    assert torch.equal(found["x"], X[part]) and torch.equal(found["rest"][0], Y[part])
    assert found["rest"][1] == "text"


def test_repeat_first():
    x, y = repeat_first((X, Y), 3)
    assert torch.equal(x, X[[0, 0, 0]]) and torch.equal(y, Y[[0, 0, 0]])
    x[0, 0] = 9
    assert float(x[1, 0]) == 0 == float(X[0, 0])


def test_devices():
    assert to_device((X, "text"), torch.device("meta"))[0].device.type == "meta"
    check_device(NESTED, torch.device("cpu"))
    with pytest.raises(
        DataError, match=r"the batch is on cpu and the model on meta; .*to\('meta'\)"
    ):
        check_device(NESTED, torch.device("meta"))


@pytest.mark.gpu
def test_a_gpu_is_fed_from_page_locked_memory_and_does_not_wait():
    device = torch.device("cuda", 0)
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    sources = [X, X[::2], X[:1].expand(7, *X.shape[1:]), X.pin_memory(), X.to(device), images]
    to_device(sources, device)  # makes the page-locked memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = to_device(sources, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for source, moved in zip(sources, found, strict=True):
        assert moved.device == device and torch.equal(moved.cpu(), source.cpu())
    assert found[-1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("batch", "args", "kwargs", "labels"),
    [
        (X, 1, [], None),
        ((X,), 1, [], None),
        ((X, Y), 1, [], Y),
        ([X, X, Y], 2, [], Y),
        (Pair(X, Y), 1, [], Y),
        ({"x": X}, 0, ["x"], None),
        ({"x": X, "labels": Y}, 0, ["x"], Y),
        (UserDict(x=X, label=Y), 0, ["x"], Y),
        (Example(X, Y), 0, ["x", "name", "count"], Y),
    ],
)
def test_split(batch, args, kwargs, labels):
    found = split(batch)
    assert len(found[0]) == args and all(torch.equal(x, X) for x in found[0])
    assert list(found[1]) == kwargs
    assert found[2] is labels


def test_split_of_something_else():
    with pytest.raises(DataError, match="the batch is a str; expected a tensor, tuple, list, dict"):
        split("text")
