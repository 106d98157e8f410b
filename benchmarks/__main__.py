"""Command line: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.anatome import Anatome
from benchmarks.coverage import Coverage
from benchmarks.exact import Exact, ExactCost
from benchmarks.gpu_job import GpuJob
from benchmarks.gpu_kernels import GpuKernels
from benchmarks.gpu_layers import GpuLayers
from benchmarks.gpu_overhead import GpuOverhead
from benchmarks.kernels import Kernels
from benchmarks.lds import Lds
from benchmarks.memory import Memory
from benchmarks.nads import Nads
from benchmarks.overhead import Overhead
from benchmarks.registry import CheckFailed, Entry, Options, Result, Unavailable, run
from benchmarks.scaling import Scaling
from benchmarks.search import Search
from benchmarks.store import Store
from benchmarks.trak import Trak
from benchmarks.variance import Variance

ENTRIES: list[type[Entry]] = [Overhead, Memory, Kernels, Scaling, Trak, Variance]
ENTRIES += [Store, Search, Exact, ExactCost]
ENTRIES += [Coverage, Lds, Nads]
ENTRIES += [Anatome]
ENTRIES += [GpuOverhead, GpuKernels, GpuLayers, GpuJob]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run entries; 1 if a check failed, 0 otherwise (also if an entry cannot run here)."""
    entries = {entry.name: entry for entry in ENTRIES}
    parser = _parser(list(entries))
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in entries]
    if unknown:
        parser.error(f"no entry {', '.join(unknown)}; there are {', '.join(entries)}")
    if given.list:
        for name, entry in entries.items():
            print(f"{name:14}{entry.summary}")
        return 0
    if given.threads:
        torch.set_num_threads(given.threads)
    # fp32 is fp32: cuDNN convolutions would otherwise round their inputs to TF32
    torch.backends.cudnn.allow_tf32 = False
    cuda = given.device == "auto" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu" if given.device == "auto" else given.device)
    repeats = given.repeats or (3 if given.quick else 20)
    deadline = time.monotonic() + given.seconds
    options = Options(device, repeats, given.quick, given.full, deadline)
    where, most = machine.describe(device), machine.ceilings(device, given.quick)
    failed = False
    for name in given.names or entries:
        print(f"== {name}", flush=True)

        def save(result: Result) -> list[Path]:
            return report.write(result, where, most, given.out, quick=given.quick)

        try:
            result = run(entries[name](), options, save)
        except Unavailable as reason:
            print(f"skipped: {reason}")
            continue
        except CheckFailed as error:
            print(f"WRONG: {error}", file=sys.stderr)
            failed = True
            continue
        failed |= bool(result.failures)
        paths = save(result)
        print(report.markdown(result, where, most, quick=given.quick))
        print("\n".join(f"wrote {path}" for path in paths), flush=True)
    return int(failed)


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; or all")
    parser.add_argument("--list", action="store_true", help="list the entries")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--threads", type=_positive, metavar="N", help="torch's own by default")
    parser.add_argument("--repeats", type=_positive, metavar="N", help="timed rounds (default 20)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, metavar="S",
        help="start no further row of a gpu- entry after so long",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it run at all?")
    parser.add_argument("--full", action="store_true", help="also the traces of larger models")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
