"""Batches reach the store in order, one behind the computation, whatever ends it."""

import pytest
import torch

from pntk.staging import DEPTH, PinnedSlot, PlainSlot, Staging, slots_for


class FakeSlot:
    """Copies into one buffer when it is waited for, as a device might at the last moment."""

    def __init__(self, events):
        self.events = events
        self.buffer = torch.empty(3)
        self.waiting = None

    def start(self, tensors):
        assert self.waiting is None, "a buffer was used again before it was read"
        self.waiting = tensors["rows"]
        self.events.append(("start", int(tensors["rows"][0])))

    def finish(self):
        rows = self.waiting if self.waiting is not None else self.buffer
        self.buffer.copy_(rows)
        self.waiting = None
        return {"rows": self.buffer}


class Full(Exception):
    pass


class Lane:
    """A staging of some depth, what it wrote, and a batch that cannot be written."""

    def __init__(self, depth, refused=None, error=Full):
        self.events, self.written = [], []
        self.refused, self.error = refused, error
        self.staging = Staging(self.write, [FakeSlot(self.events) for _ in range(depth)])

    def write(self, tag, tensors):
        if tag == self.refused:
            self.refused = None
            raise self.error
        assert tensors["rows"].tolist() == [tag] * 3
        self.written.append(tag)
        self.events.append(("write", tag))

    def put(self, *numbers):
        for n in numbers:
            self.staging.put(n, {"rows": torch.full((3,), float(n))})


def test_a_batch_is_written_once_the_next_one_is_on_its_way():
    lane = Lane(depth=2)
    with lane.staging:
        lane.put(0, 1, 2)
        assert lane.written == [0, 1]
    assert lane.written == [0, 1, 2]
    starts_and_writes = [("start", 0), ("start", 1), ("write", 0), ("start", 2), ("write", 1)]
    assert lane.events == [*starts_and_writes, ("write", 2)]


def test_with_one_slot_a_batch_is_written_at_once():
    lane = Lane(depth=1)
    with lane.staging:
        lane.put(0, 1)
        assert lane.written == [0, 1]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_batch_is_written_once_and_in_order(depth, count):
    lane = Lane(depth)
    with lane.staging:
        lane.put(*range(count))
    assert lane.written == list(range(count))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt])
def test_what_was_made_before_an_error_is_written(depth, error):
    lane = Lane(depth)
    with pytest.raises(error), lane.staging:
        lane.put(0, 1, 2)
        raise error
    assert lane.written == [0, 1, 2]


@pytest.mark.parametrize("depth", [1, 2])
def test_what_comes_after_a_refused_batch_is_not_written(depth):
    lane = Lane(depth, refused=1)
    with pytest.raises(Full), lane.staging:
        lane.put(0, 1, 2, 3)
    assert lane.written == [0]


def test_the_error_of_the_earlier_batch_is_the_one_raised():
    lane = Lane(2, refused=1)
    with pytest.raises(Full), lane.staging:
        lane.put(0, 1)
        raise ValueError("of batch 2")
    assert lane.written == [0]


def test_nothing_takes_the_place_of_an_interrupt():
    lane = Lane(2, refused=1)
    with pytest.raises(KeyboardInterrupt), lane.staging:
        lane.put(0, 1)
        raise KeyboardInterrupt
    assert lane.written == [0]


def test_a_batch_whose_writing_is_interrupted_is_written_again():
    lane = Lane(2, refused=1, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), lane.staging:
        lane.put(0, 1, 2)
    assert lane.written == [0, 1, 2]


def test_a_cpu_needs_no_buffers():
    (slot,) = slots_for(torch.device("cpu"))
    assert isinstance(slot, PlainSlot)
    rows = torch.ones(2)
    slot.start({"rows": rows})
    assert slot.finish()["rows"] is rows


@pytest.mark.gpu
def test_a_gpu_has_two_sets_of_buffers_which_are_used_again():
    slots = slots_for(torch.device("cuda", 0))
    assert len(slots) == DEPTH and all(isinstance(slot, PinnedSlot) for slot in slots)
    slot = slots[0]
    places = set()
    for count in (5, 5, 3):
        rows = torch.randn(count, 4, device="cuda")
        labels = torch.arange(count, device="cuda")
        slot.start({"rows": rows, "labels": labels})
        found = slot.finish()
        assert torch.equal(found["rows"], rows.cpu())
        assert torch.equal(found["labels"], labels.cpu())
        assert found["rows"].is_pinned()
        places.add(found["rows"].data_ptr())
    assert len(places) == 1


@pytest.mark.gpu
def test_a_gpu_copies_what_has_been_computed_and_does_not_wait():
    slot = slots_for(torch.device("cuda", 0))[0]
    slot.start({"rows": torch.zeros(4, 4, device="cuda")})
    slot.finish()
    x = torch.randn(4096, 4096, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            x = x @ x / 64
        rows = x[:4, :4].clone()
        slot.start({"rows": rows})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(slot.finish()["rows"], rows.cpu())
