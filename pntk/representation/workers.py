"""Share independent passes out among the cores of a CPU.

A small network's layers do not get faster by several threads each; several passes at once do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import nn

from pntk.representation.inference import fast_layers

T = TypeVar("T")
R = TypeVar("R")

SMALL = 2**22  # entries of a network, up to which each worker may have a copy


def worker_count(model: nn.Module, device: torch.device) -> int:
    """Return how many passes to run at once: PyTorch's threads for a small network on a CPU."""
    numbers = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    return torch.get_num_threads() if device.type == "cpu" and numbers <= SMALL else 1


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
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)

    def map(self, function: Callable[[int, T], R], items: Sequence[T]) -> list[R]:
        """Return ``function(worker, item)`` for each item, in their order."""
        if self._pool is None:
            return [function(0, item) for item in items]

        def share(worker: int) -> list[R]:
            # these hold for the thread that enters them
            with torch.no_grad(), fast_layers(torch.device("cpu")):
                return [function(worker, item) for item in items[worker :: self.count]]

        shares = list(self._pool.map(share, range(self.count)))
        found = [iter(one) for one in shares]
        return [next(found[number % self.count]) for number in range(len(items))]
