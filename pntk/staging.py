"""Rows on their way from the device to the host, so that neither waits for the other.

On a GPU the rows of one batch are copied to page-locked memory and written while the next batch is
being computed; two sets of buffers take turns. Elsewhere rows go straight through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
    """Hand batches to ``write`` in the order in which they were put, once they are on the host.

    On leaving the context what was put is written, whatever the reason. A batch that ``write``
    refuses ends the line: those behind it are dropped, as if they had not been made.

    Args:
        write: ``(tag, tensors on the host) -> None``; writing the same batch twice must do no harm.
        slots: as many as batches may be on their way.
    """

    def __init__(self, write: Callable[[Any, Tensors], None], slots: Sequence[Slot]) -> None:
        self._write = write
        self._free = deque(slots)
        self._waiting: deque[tuple[Slot, Any]] = deque()

    def put(self, tag: Any, tensors: Tensors) -> None:
        """Begin to copy a batch; write the oldest one if no slot is left for the next."""
        slot = self._free[0]
        slot.start(tensors)
        self._waiting.append((slot, tag))
        self._free.popleft()
        if not self._free:
            self._write_oldest()

    def flush(self) -> None:
        """Write all that was put."""
        while self._waiting:
            self._write_oldest()

    def _write_oldest(self) -> None:
        slot, tag = self._waiting[0]
        try:
            self._write(tag, slot.finish())
        except Exception:
            self._waiting.clear()
            raise
        # only now, so that a batch whose writing Ctrl-C interrupts is written by the flush
        self._waiting.popleft()
        self._free.append(slot)

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.flush()
        except Exception:
            # of two errors, that of the earlier batch; but nothing takes the place of Ctrl-C
            if kind is None or issubclass(kind, Exception):
                raise


def slots_for(device: torch.device) -> list[Slot]:
    """Return the slots that suit a device."""
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        return [PinnedSlot(stream) for _ in range(DEPTH)]
    return [PlainSlot()]


class PlainSlot:
    """Waits for the device, which on a CPU means nothing."""

    def start(self, tensors: Tensors) -> None:
        """Keep the tensors."""
        self._tensors = tensors

    def finish(self) -> Tensors:
        """Return them on the host."""
        return {name: tensor.cpu() for name, tensor in self._tensors.items()}


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
