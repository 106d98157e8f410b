"""Share independent passes out among the cores of a CPU.

A small network's layers gain little from several threads each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from types import TracebackType
from typing import TypeVar

import torch
from torch import nn

from pntk.representation.inference import fast_layers

T = TypeVar("T")
R = TypeVar("R")

SMALL = 2**22  # entries of a network, up to which each worker may have a copy


def worker_count(model: nn.Module, device: torch.device) -> int:
    """Return how many passes to run at once: PyTorch's threads for a small network on a CPU.

    One under autocast, which holds for the thread that enters it.
    """
    numbers = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    suits = device.type == "cpu" and numbers <= SMALL and not torch.is_autocast_enabled("cpu")
    return torch.get_num_threads() if suits else 1


def copies(model: nn.Module, count: int) -> list[nn.Module]:
    """Return the model and copies of it, since a forward pass may leave something in a module."""
    return [model, *(copy.deepcopy(model) for _ in range(count - 1))]


class Workers:
    """Threads that share out items, PyTorch's operations taking one thread each meanwhile.

    Args:
        count: of workers; with one, work is done by the caller as it is.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count > 1:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)
            start = torch.set_num_threads  # counts for the thread that calls it
            self._pool = ThreadPoolExecutor(self.count, initializer=start, initargs=(1,))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                torch.set_num_threads(self._threads)

    def map(self, function: Callable[[int, T], R], items: Sequence[T]) -> list[R]:
        """Return ``function(worker, item)`` for each item, in their order.

        No two calls with one worker are at the same time. If one fails, those that run are awaited,
        no others begin, and its exception is raised.
        """
        if self._pool is None:
            return [function(0, item) for item in items]
        stop = Event()

        def share(worker: int) -> list[R]:
            own = items[worker :: self.count]
            # these hold for the thread that enters them
            with torch.no_grad(), fast_layers(torch.device("cpu")):
                return [function(worker, item) for item in own if not stop.is_set()]

        futures = [self._pool.submit(share, worker) for worker in range(self.count)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also where the caller is interrupted
            stop.set()
            wait(futures)
        shares = [future.result() for future in futures]
        found = [iter(one) for one in shares]
        return [next(found[number % self.count]) for number in range(len(items))]
