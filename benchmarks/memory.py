"""Peak memory of rows and of the ordinary gradient, each in a process of its own."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, cases, check_rows
from benchmarks.registry import Check, Entry, Options, Row, progress

MIB = 2**20
STATUS = Path("/proc/self/status")
STEADY_CALLS = 3


class Memory(Entry):
    """Peak memory above imports, model and batch."""

    name = "memory"
    summary = (
        "Peak memory above that of imports, model and batch: of f(batch), k = 4096, and of one "
        "forward and backward, each in a fresh process. Later calls are the steady state; the "
        "first call of f also runs its self-checks."
    )

    def check(self, options: Options) -> list[Check]:
        return [check_rows(case, options) for case in cases(options)]

    def measure(self, options: Options) -> list[Row]:
        if options.device.type == "cuda":
            self.notes.append("Device memory, as torch's allocator counts it.")
        elif not _can_reset_peak():
            self.notes.append(
                "This system cannot reset a process's peak, so later calls include the first."
            )
        return [_measure(case, options) for case in cases(options)]


def _measure(case: Case, options: Options) -> Row:
    progress(f"measuring {case.name}")
    backward = _in_subprocess(case, "backward", options)
    ours = _in_subprocess(case, "f", options)
    return Row(
        case.name,
        {
            "later calls": ours["later"] / backward["later"],
            "first call": ours["first"] / backward["first"],
        },
        {
            "forward + backward, later [MiB]": backward["later"] / MIB,
            "f, later [MiB]": ours["later"] / MIB,
            "forward + backward, first [MiB]": backward["first"] / MIB,
            "f, first [MiB]": ours["first"] / MIB,
            "imports + model + batch [MiB]": ours["base"] / MIB,
        },
    )


def _in_subprocess(case: Case, what: str, options: Options) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", case.name, what]
    command += ["--device", str(options.device), "--threads", str(torch.get_num_threads())]
    command += [flag for flag, on in (("--quick", options.quick), ("--full", options.full)) if on]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


# ---- in the subprocess ---------------------------------------------------------------------------


def peaks(call: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Return bytes before any call, and the peaks above that of the first and later calls."""
    gc.collect()
    reset_peak(device)
    base = peak(device)
    call()
    first = peak(device)
    reset_peak(device)
    for _ in range(STEADY_CALLS):
        call()
    return {"base": base, "first": first - base, "later": peak(device) - base}


def peak(device: torch.device) -> int:
    """Return the peak of this process's resident memory, or of device memory, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def reset_peak(device: torch.device) -> None:
    """Let the peak start again at what is held now, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _can_reset_peak()


def _can_reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("what", choices=["backward", "f"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    given: Any = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.backends.cudnn.allow_tf32 = False  # as in the parent
    options = Options(torch.device(given.device), quick=given.quick, full=given.full)
    case = next(case for case in cases(options) if case.name == given.case)
    loaded = case.load(options)
    if given.what == "backward":
        found = peaks(loaded.backward, options.device)
    else:
        f = loaded.featurizer()
        found = peaks(lambda: f(loaded.batch), options.device)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
