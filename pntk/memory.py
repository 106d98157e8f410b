"""Cut batches so that one forward and backward keep within a stated number of bytes."""

from __future__ import annotations

import re

from pntk.errors import ConfigError
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


def batch_that_fits(plan: Plan, projector: Projector, count: int, budget: int | None) -> int:
    """Return how many of ``count`` samples to run at a time.

    Raises:
        ConfigError: one sample alone is estimated to take more than the budget.
    """
    if budget is None:
        return count
    # transformed inputs stay for the next output
    kept = 2 if plan.outputs > 1 and projector.impl == "torch" else 1
    each = kept * plan.sample_bytes + projector.width * projector.dtype.itemsize
    room = budget // 2  # the other half is for temporaries and sign tables
    if room < each:
        raise ConfigError(
            f"memory_budget is {budget:,} bytes and one sample takes about {2 * each:,} by "
            "estimate; expected room for one"
        )
    return min(count, room // each)
