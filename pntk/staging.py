"""Rows on their way from the device to the store, so that computing does not wait for either.

One thread writes a batch while the next one is being computed. On a GPU the copy to the host, into
page-locked memory, runs beside them both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
DEPTH = 2  # batches on their way: one is being computed, one written


class Slot(Protocol):
    """Takes the tensors of one batch to the host."""

    def start(self, tensors: Tensors) -> None:
        """Begin to copy, without waiting for what is still being computed."""

    def finish(self) -> Tensors:
        """Wait for the copy and return it; it is valid until the next ``start``."""


class Staging:
    """Hand batches to ``write``, in a thread of its own and in the order in which they were put.

    On leaving the context what was put is written, whatever the reason. A batch that ``write``
    refuses ends the line: those behind it are dropped, as if they had not been made, and its error
    is raised by the next ``put`` or on leaving.

    Args:
        write: ``(tag, tensors on the host) -> None``, best without operations of torch: its modes
            (gradients, inference, autocast) are not the caller's there, and the threads that a
            second caller of its parallel loops gets slow down those of the first.
        slots: as many as batches may be on their way.
    """

    # Between the threads are SimpleQueues alone: what else can be waited for takes locks in Python
    # code, which Ctrl-C may leave taken, or freed twice.

    def __init__(self, write: Callable[[Any, Tensors], None], slots: Sequence[Slot]) -> None:
        self._write = write
        self._line: SimpleQueue[tuple[Slot, Any] | None] = SimpleQueue()  # None ends it
        self._free: SimpleQueue[Any] = SimpleQueue()  # slots; None once the thread has ended
        for slot in slots:
            self._free.put(slot)
        self._next: Slot | None = None  # taken from the free ones
        self._thread: Thread | None = None
        self._errors: list[BaseException] = []  # at most one, of the thread
        self._dropping = False
        self._ended = False

    def put(self, tag: Any, tensors: Tensors) -> None:
        """Begin to copy a batch, then wait until there is a slot for the next.

        Args:
            tensors: not to be changed any more.
        """
        if self._thread is None:
            thread = Thread(target=self._work, name="pntk writer", daemon=True)
            thread.start()
            self._thread = thread
        self._next = slot = self._next or self._free.get()
        slot.start(tensors)
        self._next = None
        self._line.put((slot, tag))
        # waits here, with the batch in line, so that Ctrl-C does not lose it
        self._next = self._free.get()
        if self._errors:
            raise self._errors[0]

    def _work(self) -> None:
        """Write what comes along the line, to its end."""
        for slot, tag in iter(self._line.get, None):
            try:
                if not self._dropping:
                    self._write(tag, slot.finish())
            except BaseException as error:
                self._dropping = True
                self._errors.append(error)
            self._free.put(slot)
        self._ended = True
        self._free.put(None)

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._finish()
        except BaseException:  # Ctrl-C, which must not lose what was put
            try:
                self._finish()
            finally:  # a second one may, but not what is being written; a third does not wait
                self._dropping = True
                self._finish()
            raise
        # of two errors, that of the earlier batch; but nothing takes the place of Ctrl-C
        if error in self._errors or not (error is None or isinstance(error, Exception)):
            self._errors.clear()
        if self._errors:
            raise self._errors.pop()  # one that was kept would hold its own traceback

    def _finish(self) -> None:
        """Wait until the thread has written what was put, and has ended."""
        self._line.put(None)
        if self._thread is not None:
            while not self._ended:
                self._free.get()
            self._thread.join()


def slots_for(device: torch.device) -> list[Slot]:
    """Return the slots that suit a device."""
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        return [PinnedSlot(stream) for _ in range(DEPTH)]
    return [PlainSlot() for _ in range(DEPTH)]


class PlainSlot:
    """Waits for the device, which on a CPU means nothing."""

    def start(self, tensors: Tensors) -> None:
        """Keep the tensors, on the host."""
        self._tensors = {name: tensor.cpu() for name, tensor in tensors.items()}

    def finish(self) -> Tensors:
        """Return them."""
        return self._tensors


class PinnedSlot:
    """Copies on a stream of its own into page-locked buffers, which are used again.

    Args:
        stream: on which to copy, other than the one that computes.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._copied = torch.cuda.Event()
        self._buffers: dict[str, Tensor] = {}
        self._source: Tensors = {}
        self._result: dict[str, Tensor] = {}

    def start(self, tensors: Tensors) -> None:
        """Begin to copy once what was queued until now has been computed."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._source = tensors  # kept until copied, or the allocator would give them away
        with torch.cuda.stream(self._stream):
            self._result = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
            self._copied.record(self._stream)

    def finish(self) -> Tensors:
        """Wait for this copy alone."""
        with torch.cuda.device(self._stream.device):  # a new thread would start up GPU 0 as well
            self._copied.synchronize()
        self._source = {}
        return self._result

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or not _fits(tensor, buffer):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._buffers[name] = buffer
        place = buffer[: len(tensor)]
        place.copy_(tensor, non_blocking=True)
        return place


def _fits(tensor: Tensor, buffer: Tensor) -> bool:
    return (
        tensor.dtype == buffer.dtype
        and tensor.shape[1:] == buffer.shape[1:]
        and len(tensor) <= len(buffer)
    )
