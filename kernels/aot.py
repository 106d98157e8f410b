"""Compile every kernel of the package ahead of time, and check its machine code; needs no GPU.

    python -m pntk.kernels.aot [--arch 80 90] [--markdown PATH] [MODULE ...]

A module that gives ``variants()`` takes part. What is checked: products that are meant for tensor
cores are on them, nothing is spilled, and shared memory fits.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pntk.kernels
from pntk.kernels.variant import Variant

ARCHITECTURES = (80, 90)
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of a block, CUDA programming guide, table 30
TENSOR = re.compile(r"\b(HMMA|HGMMA|IMMA|QGMMA|DMMA)\.")
LOCAL = re.compile(r"\b(LDL|STL)\b")  # local memory: what does not fit into registers
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
HEADER = ("kernel", "variant", "arch", "registers", "shared", "tensor", "spills")


class Report(NamedTuple):
    """What a variant became; ``problems`` is empty where all is as it is meant to be."""

    kernel: str
    variant: str
    arch: int
    registers: int
    shared: int
    tensor: int
    spills: int
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The variant as violations and failures show it."""
        return f"{self.kernel} ({self.variant}), sm_{self.arch}"


def modules() -> list[str]:
    """Return the modules of the package that give variants."""
    names = [
        f"pntk.kernels.{module.name}"
        for module in pkgutil.iter_modules(pntk.kernels.__path__)
        if module.name != "aot"
    ]
    return [name for name in names if hasattr(importlib.import_module(name), "variants")]


def compile_variant(variant: Variant, arch: int) -> Any:
    """Return Triton's compiled kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.function.arg_names
    unknown = {*variant.signature, *variant.constants, *variant.divisible} - set(names)
    missing = set(names) - {*variant.signature, *variant.constants}
    if unknown or missing:
        raise ValueError(f"arguments unknown {sorted(unknown)}, without a type {sorted(missing)}")
    types = {
        name: "constexpr" if name in variant.constants else variant.signature[name]
        for name in names
    }
    aligned = [
        (place,)
        for place, (name, type_) in enumerate(types.items())
        if type_.startswith("*") or name in variant.divisible
    ]
    source = ASTSource(
        variant.function,
        types,
        variant.constants,
        {place: [["tt.divisibility", 16]] for place in aligned},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def inspect(variant: Variant, arch: int) -> Report:
    """Compile a variant and read its machine code."""
    kernel, problems = variant.function.__name__, []
    try:
        compiled = compile_variant(variant, arch)
    except Exception as error:  # whatever it is, the other variants are still looked at
        text = str(error).strip() or repr(error)
        return Report(kernel, variant.name, arch, 0, 0, 0, 0, (f"does not compile: {text}",))
    usage = RESOURCES.search(_cuobjdump("-res-usage", compiled.asm["cubin"]))
    if usage is None:
        raise RuntimeError(f"cuobjdump -res-usage says nothing of {kernel} for sm_{arch}")
    registers, stack, _, local = map(int, usage.groups())
    code = _cuobjdump("-sass", compiled.asm["cubin"])
    tensor, spills = len(TENSOR.findall(code)), len(LOCAL.findall(code))
    shared = compiled.metadata.shared
    if variant.tensor_cores and not tensor:
        problems.append("no tensor-core instructions")
    if stack or local or spills:
        problems.append(f"spills: {stack + local} bytes, {spills} instructions")
    if shared > SHARED_BYTES.get(arch, sys.maxsize):
        problems.append(f"{shared} bytes of shared memory; at most {SHARED_BYTES[arch]}")
    return Report(kernel, variant.name, arch, registers, shared, tensor, spills, tuple(problems))


def _cuobjdump(option: str, cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _inspect_numbered(module: str, number: int, arch: int) -> Report:
    # by number, because a kernel cannot be sent to another process
    return inspect(importlib.import_module(module).variants()[number], arch)


def inspect_all(names: Sequence[str], architectures: Sequence[int]) -> list[Report]:
    """Return the reports of all variants of these modules, in order."""
    work = [
        (name, number, arch)
        for name in names
        for number in range(len(importlib.import_module(name).variants()))
        for arch in architectures
    ]
    # fresh processes: Triton's compiler has threads, which a fork would not take along
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(work) or 1, os.cpu_count() or 1), context) as pool:
        return list(pool.map(_inspect_numbered, *zip(*work, strict=True))) if work else []


def table(reports: Sequence[Report]) -> list[str]:
    """Return the rows of a Markdown table, its columns aligned."""
    rows = [HEADER, *(tuple(map(str, report[: len(HEADER)])) for report in reports)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and what is wrong; return 1 where something is."""
    parser = argparse.ArgumentParser(prog="triton-aot", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: all of pntk.kernels")
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    reports = inspect_all(options.modules or modules(), options.arch)
    lines = table(reports)
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")
    wrong = [report for report in reports if report.problems]
    for report in wrong:
        print(f"VIOLATION {report.name}: {'; '.join(report.problems)}")
    print(f"{len(reports)} kernels compiled, {len(wrong)} with violations")
    return 1 if wrong or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
