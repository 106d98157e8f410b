"""On what a measurement was taken, and the most that this machine can do."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pntk
from benchmarks.peak import core_peaks
from benchmarks.registry import Unavailable, progress
from benchmarks.timing import interleaved, repeated
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

    On a CPU also what one core does, where it can be measured; see ``core_peaks``. On a GPU also
    products in TF32 and bfloat16. All on random numbers: zeros can be faster.
    """
    if device.type != "cpu":
        return gpu_ceilings(device, quick)
    found = {
        "gemm_gflops": max(_gemm(n, device) for n in ([256] if quick else [1024, 2048, 4096])),
        "copy_gbytes": _copy(2**20 if quick else 2**26, device),
    }
    try:
        found |= core_peaks(quick)
    except Unavailable as reason:
        progress(str(reason))
    return found


@functools.cache
def gpu_ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """Return what a GPU does in fp32, TF32 and bfloat16, and in a copy; see ``ceilings``."""
    size = 256 if quick else 8192
    with tf32(True):
        rounded = _gemm(size, device)
    with tf32(False):
        exact = _gemm(size, device)
    return {
        "gemm_gflops": exact,
        "copy_gbytes": _copy(2**20 if quick else 2**30, device),
        "gemm_tf32_gflops": rounded,
        "gemm_bf16_gflops": _gemm(size, device, torch.bfloat16),
    }


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let products and convolutions of a GPU round float32 to TF32, or not."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


def _gemm(n: int, device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the GF/s of a product of n x n matrices."""
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    out = torch.empty_like(a)
    calls = 1 if device.type == "cpu" else 10
    turn = repeated(lambda: torch.mm(a, b, out=out), calls)
    times = interleaved({"gemm": turn}, 3, warmup=1, device=device)
    return 2e-9 * n**3 * calls / min(times.seconds["gemm"])


def _copy(count: int, device: torch.device) -> float:
    """Return the GB/s of a copy of so many numbers, read plus written."""
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 5, device=device)
    return 2e-9 * source.nbytes / min(times.seconds["copy"])
