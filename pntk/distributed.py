"""The processes that share the work, if there are several."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from pntk.errors import DistributedError

T = TypeVar("T")

_POLL = 0.05  # seconds
_MEETING = timedelta(minutes=30)  # to find each other, as long as PyTorch itself gives them
_PATIENCE = timedelta(days=30)  # after that ranks wait for the slowest, whatever its share takes


class Group:
    """One process that works alone."""

    rank = 0
    size = 1

    def share(self, value: T) -> T:
        """Return what rank 0 has given."""
        return value

    def wait(self) -> None:
        """Wait until every rank is here."""


class Ranks(Group):
    """The ranks of torch.distributed; they exchange a few words through gloo.

    Args:
        handle: a gloo process group of all ranks.
    """

    def __init__(self, handle: Any) -> None:
        import torch.distributed as dist

        self._handle = handle
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, value: T) -> T:
        """Return what rank 0 has given.

        Raises:
            DistributedError: another rank has ended.
        """
        import torch.distributed as dist

        held = [value]
        self.wait()  # so that the broadcast, which Ctrl-C cannot end, is short
        with _explained(self.rank):
            dist.broadcast_object_list(held, src=0, group=self._handle)
        return held[0]

    def wait(self) -> None:
        """Wait until every rank is here.

        Raises:
            DistributedError: another rank has ended.
        """
        import torch.distributed as dist

        with _explained(self.rank):
            work = dist.barrier(group=self._handle, async_op=True)
            while not work.is_completed():  # its own wait would keep signals out
                time.sleep(_POLL)
            work.wait()

    def leave(self) -> None:
        """Close the connections, which tells ranks that wait for this one."""
        import torch.distributed as dist

        handle, self._handle = self._handle, None
        dist.destroy_process_group(handle)


def is_distributed() -> bool:
    """Whether torch.distributed has been initialised with several ranks."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def processes() -> Iterator[Group]:
    """Enter with all ranks of torch.distributed, if it has been initialised; else alone."""
    import torch.distributed as dist

    if not is_distributed():
        yield Group()
        return
    with _explained(dist.get_rank()):
        handle = dist.new_group(backend="gloo", timeout=_MEETING)
    dist.distributed_c10d._set_pg_timeout(_PATIENCE, handle)
    ranks = Ranks(handle)
    try:
        yield ranks
    finally:
        ranks.leave()


@contextmanager
def launched() -> Iterator[int]:
    """Join the processes that torchrun or the like has started, if it has, and yield the rank."""
    import torch.distributed as dist

    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield 0
        return
    try:
        dist.init_process_group("gloo", timeout=_MEETING)
    except (ValueError, RuntimeError) as error:
        raise DistributedError(
            f"RANK and WORLD_SIZE are set and the processes cannot meet ({error}); start with "
            "torchrun, or unset both for one process"
        ) from error
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


@contextmanager
def _explained(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise DistributedError(
            f"rank {rank}: another rank has ended ({reason}); its own message says why. Rows are "
            "kept: run the same command again, with any number of processes"
        ) from error
