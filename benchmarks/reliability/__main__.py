"""All of it: ``python -m benchmarks.reliability [NAME ...]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import torch

from benchmarks.machine import describe
from benchmarks.reliability import bitflip, disk_full, fuzz, memory, power_cut, report, storm
from benchmarks.reliability.report import DIR_HELP, Finding, Unavailable

Script = Callable[..., Finding]

FULL: dict[str, Script] = {
    "storm": storm.run,
    "power_cut": power_cut.run,
    "bitflip": bitflip.run,
    "fuzz": fuzz.run,
    "disk_full": disk_full.run,
    "memory": memory.run,
}
QUICK: dict[str, Script] = {
    "storm": partial(storm.run, kills=4, rows=1000),
    "power_cut": partial(power_cut.run, instants=200),
    "bitflip": partial(bitflip.run, random=200, step=29, large=(1000, 16)),
    "fuzz": partial(fuzz.run, count=200),
    "disk_full": disk_full.run,
    "memory": partial(memory.run, 20_000, 512, 200, "100MB", 3000, "64MB"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run scripts and write what they found; 1 if something did not hold, 0 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FULL)}; or all")
    parser.add_argument("--quick", action="store_true", help="small numbers: does it run?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--dir", type=Path, help=DIR_HELP)
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in FULL]
    if unknown:
        parser.error(f"no script {', '.join(unknown)}; there are {', '.join(FULL)}")
    failed = False
    for name in given.names or FULL:
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        try:
            finding = (QUICK if given.quick else FULL)[name](parent=given.dir)
        except Unavailable as reason:
            print(f"not run: {reason}")
            continue
        seconds = time.perf_counter() - began
        failed |= bool(report.finish(finding))
        command = f"python -m benchmarks.reliability {name}" + " --quick" * given.quick
        paths = report.write([(finding, command, seconds)], machine(given.dir), given.out)
        print("\n".join(f"wrote {path}" for path in paths), flush=True)
    return int(failed)


def machine(folder: Path | None) -> dict[str, Any]:
    """Return hardware, software, commit, date, and what kind of disk the files were on."""
    found = describe(torch.device("cpu"))
    hdf5 = {"h5py": h5py.version.version, "hdf5": h5py.version.hdf5_version}
    return found | hdf5 | {"disk": file_system(folder or Path(tempfile.gettempdir()))}


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "file system unknown"
    place = folder.resolve()
    mounts = {Path(line.split()[1]): line.split()[2] for line in lines}
    return next((mounts[path] for path in (place, *place.parents) if path in mounts), "unknown")


if __name__ == "__main__":
    sys.exit(main())
