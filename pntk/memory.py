"""Cut batches so that one forward and backward keep within a stated number of bytes."""

from __future__ import annotations

import gc
import re

import torch

from pntk.errors import ConfigError, OutOfMemoryError
from pntk.gradients.plan import Plan
from pntk.projection.dispatch import Projector

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(size: int | str | None) -> int | None:
    """Return a number of bytes.

    Raises:
        ConfigError: not a positive size.

    >>> parse_bytes("1.5 GiB")
    1610612736
    """
    if size is None:
        return None
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", str(size))
    try:
        number = float(found[1]) * _UNITS[found[2].lower()] if found else 0.0
    except (KeyError, ValueError):
        number = 0.0
    if isinstance(size, bool) or not 1 <= number < 2**63:
        raise ConfigError(
            f"memory_budget is {size!r}; expected bytes, or a text such as '500MB' or '2GiB'"
        )
    return int(number)


def required_bytes(size: int | str) -> int:
    """Return a number of bytes, where None does not stand for no limit.

    Raises:
        ConfigError: None, or not a positive size.
    """
    found = parse_bytes(size)
    if found is None:
        raise ConfigError("memory_budget is None; expected bytes, or a text such as '1GB'")
    return found


def batch_that_fits(plan: Plan, projector: Projector, count: int, budget: int | None) -> int:
    """Return how many of ``count`` samples to run at a time.

    Raises:
        ConfigError: one sample alone is estimated to take more than the budget.
    """
    if budget is None:
        return count
    each = _bytes_a_sample(plan, projector)
    room = budget // 2  # the other half is for temporaries and sign tables
    if room < each:
        raise ConfigError(
            f"memory_budget is {budget:,} bytes and one sample takes about {2 * each:,} by "
            "estimate; expected room for one"
        )
    return min(count, room // each)


def out_of_memory(
    plan: Plan, projector: Projector | None, count: int, device: torch.device
) -> OutOfMemoryError:
    """Return the error for a batch of ``count`` that was too large, with one that would fit.

    To be called when nothing of the failed pass is left, so that the free memory can be seen.

    Args:
        projector: None where the model did not get through the probe.
    """
    if count == 1:
        return OutOfMemoryError(
            f"one sample alone takes more memory than {device} has left; free some, choose fewer "
            "parameters with params=, or use a device with more"
        )
    half = count // 2
    each = _bytes_a_sample(plan, projector) if projector else 0
    room = _free_bytes(device) // 2  # the other half is for temporaries and sign tables
    fits = room // each if each and each <= room < each * count else half
    budget = f", or memory_budget={2 * each * fits}, which cuts batches" if each else ""
    return OutOfMemoryError(
        f"a batch of {count} takes more memory than {device} has; about {fits} fit by estimate: "
        f"use batch_size={fits}{budget} (rows in a store are kept)"
    )


def _bytes_a_sample(plan: Plan, projector: Projector) -> int:
    # transformed inputs stay for the next output, but where the CPU kernels make them anew
    kept = 2 if plan.outputs > 1 and projector.impl != "cpu" else 1
    return kept * plan.sample_bytes + projector.width * projector.dtype.itemsize


def _free_bytes(device: torch.device) -> int:
    """Return what a new allocation may take, or 0 where torch cannot tell."""
    if device.type != "cuda":
        return 0
    gc.collect()  # a graph and the hooks on it hold each other, and the memory of a failed pass
    own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + own
