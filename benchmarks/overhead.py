"""R: what rows cost, in units of the ordinary gradient of the same batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, Loaded, cases, check_rows
from benchmarks.machine import cpu_level
from benchmarks.registry import Check, Entry, Options, Row, progress
from benchmarks.timing import interleaved
from pntk import Featurizer


class Overhead(Entry):
    """Time of f(batch) over time of one forward and backward."""

    name = "overhead"
    summary = (
        "R = time of f(batch), k = 4096, over time of one forward and backward of the same batch "
        "with parameter gradients (one backward an output for a trace). R_floor is that of one "
        "forward and the backward down to the first layers alone, which no rows can do without: "
        "R - R_floor is what the projection adds."
    )

    def check(self, options: Options) -> list[Check]:
        return [check_rows(case, options) for case in cases(options)]

    def measure(self, options: Options) -> list[Row]:
        self.notes.append(
            "Flops are those of matrix products and convolutions, as torch's counter sees them; "
            "it does not see into compiled kernels."
        )
        return [_measure(case, options) for case in cases(options)]


def _measure(case: Case, options: Options) -> Row:
    progress(f"timing {case.name}")
    loaded = case.load(options)
    return measure(case.name, loaded, loaded.featurizer(), options)


def measure(
    name: str, loaded: Loaded, f: Featurizer, options: Options, seconds: float = math.inf
) -> Row:
    """Time rows beside the ordinary gradient of a batch, in about so many seconds."""
    competitors: dict[str, Callable[[], object]] = {
        "backward": loaded.backward,
        "floor": loaded.floor(),
        "f": lambda: f(loaded.batch),
    }
    times = interleaved(competitors, options.repeats, device=options.device, seconds=seconds)
    flops = {name: _flops(competitors[name]) for name in ("backward", "f")}
    ours = times.of("f")
    return Row(
        name,
        {
            "R": times.ratio("f", "backward"),
            "R_floor": times.ratio("floor", "backward"),
            "flops": flops["f"] / flops["backward"],
        },
        {
            "batch": len(loaded.batch),
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "forward + backward [ms]": times.of("backward").times(1e3),
            "floor [ms]": times.of("floor").times(1e3),
            "f(batch) [ms]": ours.times(1e3),
            "f [samples/s]": len(loaded.batch) / ours.median,
            "forward + backward [GF/s]": flops["backward"] / times.of("backward").median / 1e9,
            "f [GF/s]": flops["f"] / ours.median / 1e9,
            "impl": f"cpu ({cpu_level()})" if f.impl == "cpu" else f.impl,
        },
    )


def _flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        function()
    return counter.get_total_flops()
