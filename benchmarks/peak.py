"""The most that one core does: peak.cpp, compiled and run on the spot."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.registry import Unavailable

SOURCE = Path(__file__).with_name("peak.cpp")
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = ("-O3", "-std=c++17", "-march=native")


@functools.cache
def core_peaks(quick: bool = False) -> dict[str, float]:
    """Return what one core does: arithmetic [GF/s], and streams from memory [GB/s].

    ``core_fma_gflops`` is of fp32 at the widest instructions; ``core_dot_bf16_gflops`` (AVX-512)
    and ``core_amx_bf16_gflops`` are there where the processor has them. ``core_read_gbytes`` sums
    one array; ``core_triad_gbytes`` counts two arrays read and one written.

    Raises:
        Unavailable: there is no compiler, or it cannot compile the program.
    """
    named = os.environ.get("CXX")
    compiler = next(filter(shutil.which, [named] if named else COMPILERS), None)
    if compiler is None:
        raise Unavailable(
            f"no C++ compiler ({named or ', '.join(COMPILERS)}) to measure the core's peaks with; "
            "install one, or name it in CXX"
        )
    seconds, floats = ("0.002", "1000000") if quick else ("0.1", "67108864")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "peak")
        try:
            _run([compiler, *OPTIONS, str(SOURCE), "-o", program])
            found: dict[str, float] = json.loads(_run([program, seconds, floats]))
        except subprocess.CalledProcessError as error:
            raise Unavailable(
                f"the core's peaks were not measured; {Path(error.cmd[0]).name} failed: "
                f"{error.stderr.strip()[-300:]}"
            ) from None
    return found


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
