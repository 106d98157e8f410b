"""``pntk info``: what this installation can do, or what a store holds."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import torch
import typer

from pntk._version import __version__
from pntk.cli.common import JsonFlag, format_bytes, print_facts, print_json
from pntk.errors import KernelError
from pntk.projection import bits, cuda
from pntk.projection.dispatch import GPU, IMPLEMENTATIONS, why_not
from pntk.store import FeatureStore
from pntk.store.layout import is_present

NAME = "info"
EXAMPLES = ("pntk info", "pntk info train.h5", "pntk info train.h5 --json | jq .missing")
EXTRAS = {  # extra -> modules that it brings
    "cli": ("typer", "rich"),
    "analysis": ("sklearn", "scipy", "matplotlib", "jinja2"),
    "search": ("faiss",),
    "text": ("transformers",),
}
SHOWN_LABELS = 20


def command(
    store: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            dir_okay=False,
            metavar="[STORE.h5]",
            help="A store; without it, this installation.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Describe this installation, or a store."""
    if store is None:
        values = environment()
        print_json(values) if as_json else print_facts(_environment_facts(values))
    else:
        values = describe_store(FeatureStore(store))
        print_json(values) if as_json else print_facts(_store_facts(values))


# ---- this installation -------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Return versions, hardware, and what is usable or else why not."""
    return {
        "versions": {
            "pntk": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "h5py": h5py.__version__,
        },
        "cpu": {
            "name": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "cuda": [_gpu(index) for index in range(torch.cuda.device_count())],
        "implementations": {name: _why_unusable(name) for name in IMPLEMENTATIONS},
        "kernels": _kernels(),
        "cuda_kernels": _cuda_kernels(),
        "extras": {extra: _missing(modules) for extra, modules in EXTRAS.items()},
    }


def _kernels() -> dict[str, Any]:
    """Return the instruction set that the compiled kernels use, and what they have for others."""
    native = bits.native_module()
    if native is None:
        return {"level": None, "reason": bits.native_error(), "levels": {}}
    cap = os.environ.get("PNTK_CPU_LEVEL")
    return {
        "level": native.level(),
        "reason": f"PNTK_CPU_LEVEL={cap}" if cap else "the widest that this processor has",
        "levels": dict(native.levels()),
    }


def _cuda_kernels() -> dict[str, Any]:
    """Return for which architectures the CUDA kernels were compiled, or why they are not there."""
    module = cuda.cuda_module()
    return {
        "architectures": module.architectures.split(";") if module else [],
        "reason": cuda.cuda_error(),
    }


def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"


def _why_unusable(impl: str) -> str | None:
    """Return why an implementation cannot be chosen here, or None where it can."""
    try:
        return why_not(impl, device="cuda" if impl in GPU else "cpu")
    except KernelError as error:
        return str(error)


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _environment_facts(values: dict[str, Any]) -> dict[str, str]:
    cpu = values["cpu"]
    facts = dict(values["versions"])
    facts["CPU"] = f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads"
    facts["CUDA"] = ", ".join(values["cuda"]) or "no device that PyTorch can use"
    for name, reason in values["implementations"].items():
        facts[f"impl {name}"] = "usable" if reason is None else f"not usable: {reason}"
    kernels = values["kernels"]
    facts["CPU kernels"] = f"{kernels['level'] or 'none'} ({kernels['reason']})"
    if kernels["levels"]:
        known = kernels["levels"].items()
        facts["CPU levels"] = ", ".join(name + ("" if ok else " (not here)") for name, ok in known)
    compiled = values["cuda_kernels"]
    names = [f"sm_{arch}" for arch in compiled["architectures"]]
    names = [name.replace("-virtual", " and later (PTX)") for name in names]
    facts["CUDA kernels"] = ", ".join(names) or f"none ({compiled['reason']})"
    for extra, missing in values["extras"].items():
        facts[f"extra [{extra}]"] = (
            f'lacks {", ".join(missing)}: pip install "pntk[{extra}]"' if missing else "complete"
        )
    return facts


# ---- a store -----------------------------------------------------------------------------------


def describe_store(store: FeatureStore) -> dict[str, Any]:
    """Return what a store holds and what made it."""
    header = store.header
    present = is_present(store.done)
    labels = None if store.labels is None else store.labels[present]
    found = [] if labels is None else np.unique(labels[labels >= 0], return_counts=True)
    return {
        "path": store.path,
        "bytes": sum(file.stat().st_size for file in {store.path, *store.files}),
        "files": [str(file) for file in store.files],
        "rows": len(store),
        "done": store.num_done - len(store.skipped),
        "missing": len(store) - store.num_done,
        "skipped": store.skipped.tolist(),
        "width": header.width,
        "dtype": header.dtype,
        "precision": header.precision,
        "projection": header.projection,
        "output": header.output,
        "weights": header.weights,
        "columns": header.columns,
        "labels": {str(label): int(number) for label, number in zip(*found, strict=True)},
        "params": {name: list(shape) for name, shape in header.params},
        "info": {key: value for key, value in header.info.items() if key != "coverage"},
    }


def _store_facts(values: dict[str, Any]) -> dict[str, str]:
    params = values["params"]
    entries = sum(int(np.prod(shape)) for shape in params.values())
    labels = [f"{label}: {number:,}" for label, number in values["labels"].items()]
    more = ", ..." if len(labels) > SHOWN_LABELS else ""
    return {
        "store": f"{values['path']} ({format_bytes(values['bytes'])}{_joined(values['files'])})",
        "rows": f"{values['rows']:,}: {values['done']:,} done, {values['missing']:,} missing, "
        f"{len(values['skipped']):,} skipped",
        "width": f"{values['width']:,} {values['dtype']}, sums in {values['precision']}",
        "projection": _pairs(values["projection"]),
        "output": _pairs(values["output"]),
        "labels": f"{len(labels)} classes; " + ", ".join(labels[:SHOWN_LABELS]) + more
        if labels
        else "none",
        "columns": ", ".join(values["columns"]) or "none",
        "parameters": f"{entries:,} in {len(params):,}: {_ends(list(params))}",
        "weights": values["weights"],
        "made by": _pairs(values["info"]),
    }


def _joined(files: list[str]) -> str:
    return f" in {len(files):,} joined files" if len(files) > 1 else ""


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _ends(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:2])}, ... {names[-1]}"
