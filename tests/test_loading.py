import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pntk.errors import ConfigError, DataError
from pntk.loading import DEFAULT_BATCH_SIZE, Batches

X, Y = torch.arange(22.0).view(11, 2), torch.arange(11)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


def loader(**options):
    return DataLoader(TensorDataset(X, Y), **options)


def read(found):
    """Return the indices, the labels and the sizes of (index, batch) pairs."""
    found = list(found)
    labels = [batch["y"] if isinstance(batch, dict) else batch[1] for _, batch in found]
    index = np.concatenate([index for index, _ in found])
    return index.tolist(), torch.cat(labels).tolist(), [len(index) for index, _ in found]


SOURCES = [
    ((X, Y), {"batch_size": 3}),
    ({"x": X, "y": Y}, {"batch_size": 3}),
    (TensorDataset(X, Y), {"batch_size": 3}),
    (loader(batch_size=3), {}),
    (loader(batch_size=5, drop_last=True), {"batch_size": 3}),
    (Stream(), {"batch_size": 3, "num_rows": 11}),
    (DataLoader(Stream(), batch_size=3), {"num_rows": 11}),
]


@pytest.mark.parametrize(("data", "options"), SOURCES)
@pytest.mark.parametrize(
    ("rows", "starts"),
    [(range(11), [0, 3, 6, 9]), ([0], [0]), ([10], [9]), ([1, 2, 5, 9, 10], [0, 3, 9])],
)
def test_whole_batches_that_hold_the_rows_asked_for(data, options, rows, starts):
    """Always cut at multiples of the batch size, whatever is missing."""
    batches = Batches(data, **options)
    assert batches.length == 11
    index, labels, sizes = read(batches.covering(np.asarray(rows)))
    expected = [n for start in starts for n in range(start, min(start + 3, 11))]
    assert index == labels == expected
    assert sizes == [min(3, 11 - start) for start in starts]


@pytest.mark.parametrize(("data", "options"), SOURCES)
@pytest.mark.parametrize("rows", [[0], [2, 3, 10]])
def test_just_the_rows_asked_for(data, options, rows):
    index, labels, sizes = read(Batches(data, **options).only(np.asarray(rows)))
    assert index == labels
    if "num_rows" in options:  # a stream yields whole batches
        assert set(rows) <= set(index)
    else:
        assert index == rows and set(sizes) == {1}


@pytest.mark.parametrize(("data", "options"), SOURCES)
def test_the_first_batch_has_two_examples_or_a_stream_s_own(data, options):
    first = Batches(data, **options).first()
    y = first["y"] if isinstance(first, dict) else first[1]
    assert y.tolist() == list(range(3 if "num_rows" in options else 2))


def test_one_example():
    assert Batches(X[:1]).first().shape == (1, 2)


def test_batch_sizes():
    assert Batches(X).batch_size == DEFAULT_BATCH_SIZE
    assert Batches(loader(batch_size=4)).batch_size == 4
    assert Batches(loader(batch_size=4), 7).batch_size == 7


def test_a_loader_keeps_its_collate_function():
    def collate(items):
        return {"x": torch.stack([x for x, _ in items]), "n": torch.ones(len(items))}

    batches = Batches(loader(batch_size=4, collate_fn=collate))
    found = next(batches.covering(np.arange(11)))[1]
    assert set(found) == {"x", "n"} and found["x"].shape == (4, 2)


def test_a_loader_that_does_not_batch():
    with pytest.raises(DataError, match=r"the loader has batch_size=None.*give it a batch size"):
        Batches(loader(batch_size=None), batch_size=3)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (X, {"batch_size": 0}, ConfigError, "batch_size is 0; expected a positive integer"),
        (X, {"batch_size": 2.0}, ConfigError, "batch_size is 2.0"),
        (X[:0], {}, DataError, "the data set is empty"),
        (TensorDataset(X[:0]), {}, DataError, "the data set is empty"),
        ((X, Y[:4]), {}, DataError, r"tensors have lengths \[4, 11\]; expected one length"),
        (X, {"num_rows": 10}, DataError, "num_rows is 10 and the data set has 11 examples"),
        (Stream(), {}, DataError, "num_rows is None for an iterable data set"),
        (Stream(), {"num_rows": -1}, DataError, "num_rows is -1"),
        (Stream(), {"num_rows": 0}, DataError, "the data set is empty"),
        (iter([1]), {}, DataError, "cannot read examples from a list_iterator"),
        (3, {}, DataError, "cannot read examples from a int"),
        (loader(shuffle=True), {}, DataError, "draws examples with RandomSampler"),
        (
            loader(sampler=torch.utils.data.SubsetRandomSampler([2, 1])),
            {},
            DataError,
            "draws examples with SubsetRandomSampler",
        ),
    ],
)
def test_refusals(data, options, error, message):
    with pytest.raises(error, match=message):
        Batches(data, **options)


@pytest.mark.parametrize("size", [3, 4])
def test_a_stream_that_is_too_short(size):
    batches = Batches(Stream(), batch_size=size, num_rows=15)
    with pytest.raises(DataError, match="the stream ended after 11 examples; expected num_rows=15"):
        list(batches.covering(np.arange(15)))


def test_a_stream_that_is_too_long():
    batches = Batches(Stream(), batch_size=4, num_rows=10)
    with pytest.raises(DataError, match="the stream has more than num_rows=10 examples"):
        list(batches.covering(np.arange(10)))


def test_a_stream_that_is_too_long_by_whole_batches():
    batches = Batches(Stream(), batch_size=5, num_rows=10)
    with pytest.raises(DataError, match="the stream has more than num_rows=10 examples"):
        list(batches.covering(np.arange(10)))
