"""Batches reach the store in order, beside the computation, whatever ends it."""

import signal
import sys
import threading
import time
import traceback

import pytest
import torch

from pntk.staging import DEPTH, PinnedSlot, PlainSlot, Staging, slots_for

PATIENCE = 20  # seconds, where only a defect waits for more than moments

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


class Deadlock(BaseException):
    pass


@pytest.fixture(autouse=True)
def nothing_hangs_or_stays():
    """Turn a deadlock into a failure, and see that no thread outlives its staging."""
    before = set(threading.enumerate())
    if sys.platform == "win32":
        yield
    else:

        def stop(*_):
            raise Deadlock

        handler = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 2 * PATIENCE, 1)  # again and again, as it is patient
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert set(threading.enumerate()) == before


def wait_for(event):
    assert event.wait(PATIENCE), "waited in vain"


class FakeSlot:
    """A buffer that a device may write to from ``start`` on, and reads for only in ``finish``."""

    def __init__(self, lane):
        self.lane = lane
        self.buffer = torch.empty(3)
        self.number = None

    def start(self, tensors):
        over = [None, *self.lane.over]
        assert self.number in over, "a buffer was used again before it was written"
        self.buffer.fill_(float("nan"))
        self.rows = tensors["rows"]
        self.number = int(self.rows[0])
        self.lane.starts += 1
        self.lane.most_in_flight = max(self.lane.most_in_flight, self.lane.starts - len(over) + 1)
        self.lane.started[self.number].set()

    def finish(self):
        self.buffer.copy_(self.rows)
        return {"rows": self.buffer}


class Full(Exception):
    pass


class Lane:
    """A staging of some depth, what it wrote, and what each write waits for before it is done."""

    def __init__(self, depth, refused=None, error=Full):
        self.starts = self.most_in_flight = 0
        self.over = []  # batches that were written, or refused
        self.started = [threading.Event() for _ in range(9)]  # one a batch
        self.begun = [threading.Event() for _ in range(9)]
        self.written, self.refused, self.error = [], refused, error
        self.waits = {}  # number of a batch -> called while it is being written
        self.staging = Staging(self.write, [FakeSlot(self) for _ in range(depth)])

    def write(self, tag, tensors):
        self.begun[tag].set()
        self.waits.get(tag, lambda: None)()
        assert tensors["rows"].tolist() == [tag] * 3
        self.over.append(tag)
        if tag == self.refused:
            raise self.error
        self.written.append(tag)

    def put(self, *numbers):
        for n in numbers:
            self.staging.put(n, {"rows": torch.full((3,), float(n))})


class Interrupts:
    """Brings Ctrl-C to the main thread while that waits for the writer, and at no other time."""

    def __init__(self, lane, monkeypatch):
        self.waiting, self.left, self.queue = False, 0, lane.staging._free
        monkeypatch.setattr(lane.staging, "_free", self)
        self.before = signal.signal(signal.SIGINT, self.arrived)

    def get(self):
        self.waiting = True
        try:
            return self.queue.get()
        finally:
            self.waiting = False

    def put(self, slot):
        self.queue.put(slot)

    def arrived(self, *_):
        if self.waiting and self.left:
            self.waiting, self.left = False, self.left - 1
            raise KeyboardInterrupt

    def send(self, count):
        """Interrupt the main thread, from that which writes."""
        self.left = count
        while self.left:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.01)


@pytest.fixture
def interrupts(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    yield lambda lane: Interrupts(lane, monkeypatch)
    signal.signal(signal.SIGINT, before)


def test_a_batch_is_made_while_the_one_before_is_written():
    lane, made = Lane(depth=2), threading.Event()
    lane.waits[0] = lambda: wait_for(made)
    with lane.staging:
        lane.put(0)
        wait_for(lane.begun[0])
        assert lane.written == []
        made.set()
        lane.put(1)
    assert lane.written == [0, 1]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_as_many_batches_are_on_their_way_as_there_are_slots(depth):
    lane = Lane(depth)
    for n in range(6):
        full = lane.started[min(n + depth - 1, 5)]
        lane.waits[n] = lambda full=full: wait_for(full)
    with lane.staging:
        lane.put(*range(6))
        assert lane.most_in_flight == depth
    assert lane.written == list(range(6))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_batch_is_written_once_and_in_order(depth, count):
    lane = Lane(depth)
    with lane.staging:
        lane.put(*range(count))
    assert lane.written == list(range(count))


def test_one_thread_writes_and_only_where_there_is_something(monkeypatch):
    work = Staging._work

    def end_slowly(staging):
        work(staging)
        time.sleep(0.05)

    monkeypatch.setattr(Staging, "_work", end_slowly)
    before = set(threading.enumerate())
    lane, writers = Lane(depth=2), set()
    lane.waits = {n: lambda: writers.add(threading.current_thread()) for n in range(3)}
    with lane.staging:
        assert set(threading.enumerate()) == before
        lane.put(0, 1, 2)
        (writer,) = set(threading.enumerate()) - before
        assert writer.daemon
    assert writers == {writer} and not writer.is_alive()


class Terminated(KeyboardInterrupt):
    pass


ENDS = [ValueError, MemoryError, KeyboardInterrupt, Terminated, SystemExit]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("error", ENDS)
def test_what_was_made_before_an_error_is_written(depth, error):
    lane = Lane(depth)
    with pytest.raises(error), lane.staging:
        lane.put(0, 1, 2)
        raise error
    assert lane.written == [0, 1, 2]


@pytest.mark.parametrize("error", ENDS)
def test_what_was_made_is_written_when_the_line_was_full_at_an_error(error):
    lane, left = Lane(depth=3), threading.Event()
    lane.waits[0] = lambda: wait_for(left)
    with pytest.raises(error), lane.staging:
        lane.put(0, 1)
        try:
            raise error
        finally:
            left.set()
    assert lane.written == [0, 1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_copy_that_does_not_start_loses_no_batch_before_it(number, error, monkeypatch):
    lane, start = Lane(depth=2), FakeSlot.start

    def failing(slot, tensors):
        if int(tensors["rows"][0]) == number:
            raise error
        start(slot, tensors)

    monkeypatch.setattr(FakeSlot, "start", failing)
    with pytest.raises(error), lane.staging:
        lane.put(*range(6))
    assert lane.written == list(range(number))


def test_a_thread_that_does_not_start(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"), Lane(depth=2).staging as staging:
        staging.put(0, {"rows": torch.zeros(3)})


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("refused", range(5))
@pytest.mark.parametrize("error", [Full, SystemExit])
def test_what_comes_after_a_refused_batch_is_not_written(depth, refused, error):
    lane = Lane(depth, refused, error)
    with pytest.raises(error) as found, lane.staging:
        lane.put(*range(5))
    assert lane.written == list(range(refused))
    assert "write" in [frame.name for frame in traceback.extract_tb(found.tb)]


def test_a_refusal_is_told_to_the_producer_that_waits_for_a_slot_and_to_each_after():
    lane = Lane(depth=2, refused=0)
    lane.waits[0] = lambda: wait_for(lane.started[1])
    with pytest.raises(Full), lane.staging:
        lane.put(0)
        for _ in range(3):
            with pytest.raises(Full):
                lane.put(1)
    assert lane.written == []


@pytest.mark.parametrize("depth", [2, 3])
def test_the_error_of_the_earlier_batch_is_the_one_raised(depth):
    lane, left = Lane(depth, refused=0), threading.Event()
    lane.waits[0] = lambda: wait_for(left)
    with pytest.raises(Full) as found, lane.staging:
        lane.put(*range(depth - 1))
        left.set()
        raise ValueError("of a later batch")
    assert isinstance(found.value.__context__, ValueError)
    assert lane.written == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated, SystemExit])
def test_nothing_takes_the_place_of_an_interrupt(error):
    lane, left = Lane(depth=3, refused=1), threading.Event()
    lane.waits[0] = lambda: wait_for(left)
    with pytest.raises(error), lane.staging:
        lane.put(0, 1)
        left.set()
        raise error
    assert lane.written == [0]


@posix
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_put_that_is_interrupted_while_the_line_is_full_loses_nothing(depth, interrupts):
    lane, last = Lane(depth), depth - 1
    sender = interrupts(lane)

    def interrupt():
        wait_for(lane.started[last])
        sender.send(1)

    lane.waits[0] = interrupt
    with pytest.raises(KeyboardInterrupt), lane.staging:
        lane.put(*range(last))
        lane.put(last)
        pytest.fail("there was no slot for the next batch")
    assert lane.written == list(range(depth))


@posix
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_may_go_on_after_a_put_that_was_interrupted(depth, interrupts):
    lane, last = Lane(depth), depth - 1
    sender = interrupts(lane)

    def interrupt():
        wait_for(lane.started[last])
        sender.send(1)

    lane.waits[0] = interrupt
    with lane.staging:
        lane.put(*range(last))
        with pytest.raises(KeyboardInterrupt):
            lane.put(last)
        lane.put(*range(depth, depth + 4))
    assert lane.written == list(range(depth + 4))


@posix
@pytest.mark.parametrize("refused", [None, 1])
@pytest.mark.parametrize(("count", "written"), [(1, [0, 1]), (2, [0])])
def test_ctrl_c_on_leaving_loses_nothing_and_a_second_one_what_waits(
    refused, count, written, interrupts
):
    lane, left = Lane(depth=3, refused=refused), threading.Event()
    sender = interrupts(lane)

    def interrupt():
        wait_for(left)
        sender.send(count)

    lane.waits[0] = interrupt
    with pytest.raises(KeyboardInterrupt), lane.staging:
        lane.put(0, 1)
        left.set()
    assert lane.written == [n for n in written if n != refused]


@posix
def test_a_third_ctrl_c_does_not_wait(interrupts):
    lane, left, outside = Lane(depth=2), threading.Event(), threading.Event()
    sender = interrupts(lane)

    def interrupt():
        wait_for(left)
        sender.send(3)
        wait_for(outside)

    lane.waits[0] = interrupt
    with pytest.raises(KeyboardInterrupt), lane.staging:
        lane.put(0)
        left.set()
    assert lane.written == []
    outside.set()
    lane.staging._thread.join()
    assert lane.written == [0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_device_has_slots_for_one_batch_to_be_made_and_one_written(device):
    assert len(slots_for(torch.device(device, 0))) == DEPTH == 2


def test_a_cpu_needs_no_buffers():
    slot = slots_for(torch.device("cpu"))[0]
    assert isinstance(slot, PlainSlot)
    rows = torch.ones(2)
    slot.start({"rows": rows})
    assert slot.finish()["rows"] is rows


@pytest.mark.gpu
def test_a_gpu_has_buffers_which_are_used_again():
    slot = slots_for(torch.device("cuda", 0))[0]
    assert isinstance(slot, PinnedSlot)
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
