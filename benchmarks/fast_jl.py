"""fast_jl, TRAK's CUDA projector, as a competitor: build it, and find its fastest function.

Its own setup.py asks for a GPU generation that CUDA 13 no longer compiles for, so its source is
compiled here for the GPU that is there: ``python -m benchmarks.fast_jl ARCHIVE FOLDER`` unpacks
PyPI's source archive and leaves the module in FOLDER, to be put on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.registry import Unavailable
from benchmarks.sketches import relative_error

SIZES = (32, 16, 8)  # samples that share one pass over the random numbers
BOUND = 1e-2  # its products are of float16
PROBED = 512  # parameters of the check
LIBRARY_HEADERS = ("curand_kernel.h", "cublas_v2.h", "cusparse.h", "cusolverDn.h")
WIDTHS = 512  # k must be a multiple of it


def build(archive: Path, folder: Path) -> None:
    """Compile the source archive into the folder; needs nvcc, ninja and a CUDA build of PyTorch."""
    from torch.utils import cpp_extension

    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (source,) = folder.glob("*/fast_jl.cu")
    headers: list[str] = []
    beside = Path(cpp_extension.CUDA_HOME or "") / "include"
    if not all((beside / name).exists() for name in LIBRARY_HEADERS):  # then they are packages
        packages = [Path(path) / "nvidia" for path in sys.path]
        headers = [str(found) for path in packages for found in sorted(path.glob("*/include"))]
    cpp_extension.load(
        "fast_jl",
        [str(source)],
        extra_include_paths=headers,
        build_directory=str(folder),
        extra_cuda_cflags=["-O3"],
    )


def load(family: str, k: int, sample: Tensor) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return its fastest projection of such a batch, and that function's name.

    Raises:
        Unavailable: it is not installed, or cannot make such rows.
    """
    if sample.device.type != "cuda":
        raise Unavailable("fast_jl projects on a GPU only")
    if k % WIDTHS:
        raise Unavailable(f"fast_jl needs k to be a multiple of {WIDTHS}, and k is {k}")
    try:
        module = importlib.import_module("fast_jl")
    except ImportError as error:
        raise Unavailable(f"fast_jl cannot be imported ({error}); see README.md") from None
    tiles = torch.cuda.get_device_properties(sample.device).multi_processor_count
    times: dict[str, float] = {}
    for size in SIZES:
        name = f"project_{family}_{size}"
        for _ in range(2):  # the second counts
            times[name] = _seconds(lambda name=name: getattr(module, name)(sample, k, 0, tiles))  # type: ignore[misc]
    best = min(times, key=times.__getitem__)

    def project(gradients: Tensor) -> Tensor:
        found: Tensor = getattr(module, best)(gradients, k, 0, tiles)
        return found

    return project, best


def error(project: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """Return the relative error of rows against its own matrix, which unit gradients show."""
    matrix = project(torch.eye(PROBED, device=device))
    gradients = torch.randn(8, PROBED, device=device)
    return relative_error(project(gradients), gradients.double() @ matrix.double())


def _seconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fast_jl", description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    build(given.archive, given.folder)
