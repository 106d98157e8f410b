"""A result as JSON for programs and as a Markdown table for people."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.registry import Number, Result, Row


def write(
    result: Result,
    machine: dict[str, Any],
    ceilings: dict[str, float],
    out: Path,
    *,
    quick: bool = False,
) -> list[Path]:
    """Write ``<date>-<device>-<name>.json`` and ``.md``; a later run of that day replaces them."""
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{machine['date'][:10]}-{slug(machine['device'])}-{result.name}"
    content = {"quick": quick, "machine": machine, "ceilings": ceilings, **asdict(result)}
    paths = [Path(f"{stem}.json"), Path(f"{stem}.md")]
    paths[0].write_text(json.dumps(content, indent=2) + "\n")
    paths[1].write_text(markdown(result, machine, ceilings, quick=quick))
    return paths


def slug(text: str) -> str:
    """Return a text as part of a file name.

    >>> slug("NVIDIA H100 80GB")
    'nvidia-h100-80gb'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def markdown(
    result: Result, machine: dict[str, Any], ceilings: dict[str, float], *, quick: bool = False
) -> str:
    """Return the report: ratios, absolute values, checks, notes."""
    where = caption(machine, ceilings)
    warning = ["**A quick run on tiny models: the numbers mean nothing.**", ""] if quick else []
    lines = [f"# {result.name}", "", result.summary, "", *warning]
    if result.failures:
        lines += ["## Failed", "", *(f"- {failure}" for failure in result.failures), ""]
    if any(row.ratios for row in result.rows):
        lines += ["## Ratios", "", where, "", *table(result.rows, "ratios"), ""]
    lines += ["## Absolute", "", where, "", *table(result.rows, "values"), ""]
    lines += ["## Checked before timing", "", "| what | relative error | bound |", "|---|---|---|"]
    lines += [f"| {c.what} | {c.error:.2g} | {c.bound:.2g} |" for c in result.checks]
    if result.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in result.notes)]
    return "\n".join(lines) + "\n"


def caption(machine: dict[str, Any], ceilings: dict[str, float]) -> str:
    """Return one line on hardware, software, date and commit."""
    gpu = "" if machine["device"] == "cpu" else f"{machine['device']}, CUDA {machine['cuda']}; "
    return (
        f"{gpu}{machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; torch {machine['torch']}, pntk {machine['pntk']} "
        f"({machine['commit']}), kernels {machine['cpu_level']}; {machine['date'][:10]}. "
        f"Ceilings: fp32 GEMM {ceilings['gemm_gflops']:.0f} GF/s, copy "
        f"{ceilings['copy_gbytes']:.1f} GB/s{_gpu(ceilings)}{_core(ceilings)}. Medians (quartiles)."
    )


def _gpu(ceilings: dict[str, float]) -> str:
    """Return the rates of the GPU's matrix units, where they were measured."""
    known = {"gemm_tf32_gflops": "TF32 GEMM", "gemm_bf16_gflops": "bf16 GEMM"}
    found = [f", {text} {ceilings[key]:.0f} GF/s" for key, text in known.items() if key in ceilings]
    return "".join(found)


def _core(ceilings: dict[str, float]) -> str:
    """Return the peaks of one core, where they were measured."""
    known = {
        "core_fma_gflops": "fp32 FMA {:.0f} GF/s",
        "core_dot_bf16_gflops": "bf16 dot product {:.0f} GF/s",
        "core_amx_bf16_gflops": "bf16 AMX {:.0f} GF/s",
        "core_read_gbytes": "read {:.1f} GB/s",
        "core_triad_gbytes": "triad {:.1f} GB/s",
    }
    found = [text.format(ceilings[key]) for key, text in known.items() if key in ceilings]
    return f"; one core: {', '.join(found)}" if found else ""


def table(rows: list[Row], part: str) -> list[str]:
    """Return the lines of a table; a cell that a row lacks is empty."""
    cells: list[dict[str, Number]] = [getattr(row, part) for row in rows]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    lines = ["| " + " | ".join(["case", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, values in zip(rows, cells, strict=True):
        shown = [show(values.get(name)) for name in columns]
        lines.append("| " + " | ".join([row.case, *shown]) + " |")
    return lines


def show(value: Number) -> str:
    """Return a number as four figures, its spread in brackets."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
