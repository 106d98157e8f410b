"""On what a measurement was taken, and the most that this machine can do."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pntk
from benchmarks.peak import core_peaks
from benchmarks.registry import Unavailable, progress
from benchmarks.timing import interleaved
from pntk.projection import bits

ROOT = Path(__file__).resolve().parent.parent


def describe(device: torch.device) -> dict[str, Any]:
    """Return hardware, software, commit and date."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cpu": cpu_model(),
        "cpu_level": cpu_level(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if cuda else None,
        "numpy": np.__version__,
        "pntk": pntk.__version__,
    }


def commit() -> str:
    """Return the commit, with ``-dirty`` if files differ from it.

    ``PNTK_COMMIT`` states it where the checkout has no history.
    """
    stated = os.environ.get("PNTK_COMMIT")
    if stated:
        return stated
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def cpu_model() -> str:
    """Return the name that the system gives its processor."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def cpu_level() -> str:
    """Return the instruction set that the compiled kernels run with, or ``none``."""
    native = bits.native_module()
    return str(native.level()) if native else "none"


def ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """Return the fastest fp32 matrix product [GF/s] and copy [GB/s, read plus written].

    On a CPU also what one core does, where it can be measured; see ``core_peaks``.
    """
    large = 4096 if device.type == "cpu" else 16384
    sizes = [256] if quick else [large // 4, large // 2, large]
    gemm = max(_gemm(n, device) for n in sizes)
    count = 2**20 if quick else 2**26 if device.type == "cpu" else 2**30
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    copied = interleaved({"copy": lambda: target.copy_(source)}, repeats=5, device=device)
    found = {
        "gemm_gflops": gemm / 1e9,
        "copy_gbytes": 2 * source.nbytes / min(copied.seconds["copy"]) / 1e9,
    }
    if device.type == "cpu":
        try:
            found |= core_peaks(quick)
        except Unavailable as reason:
            progress(str(reason))
    return found


def _gemm(n: int, device: torch.device) -> float:
    a, b = torch.randn(2, n, n, device=device)
    out = torch.empty_like(a)
    times = interleaved({"gemm": lambda: torch.mm(a, b, out=out)}, 3, warmup=1, device=device)
    return 2 * n**3 / min(times.seconds["gemm"])
