"""The CUDA kernels compiled for this processor, with the emulator in place of a GPU."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
EMULATOR = Path(__file__).parent / "emulator"
SOURCES = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "emulated"
AT_A_TIME = 2
# _longjmp between stacks is what _FORTIFY_SOURCE, where it is set by default, takes for an attack
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
FLAGS += ["-DPNTK_EMULATE", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def emulates() -> bool:
    """Return whether the emulator can be built here."""
    tools = shutil.which("g++") and importlib.util.find_spec("pybind11")
    return sys.platform.startswith("linux") and bool(tools)


needs_emulator = pytest.mark.skipif(not emulates(), reason="needs g++ and pybind11, on Linux")


@functools.cache
def load() -> ModuleType:
    """Return the module ``_cuda``, compiled where its sources have changed."""
    sources = [*sorted(SOURCES.glob("*.cu")), SOURCES / "bindings.cpp"]
    path = build("_cuda" + sysconfig.get_config_var("EXT_SUFFIX"), sources)
    spec = importlib.util.spec_from_file_location("_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name: str, sources: list[Path]) -> Path:
    """Compile sources into one shared library, and return its path.

    Raises:
        RuntimeError: with the compiler's words.
    """
    includes = [EMULATOR, ROOT / "csrc", SOURCES]
    headers = [path for folder in includes for path in sorted(folder.glob("*.*h"))]
    options = [*FLAGS, *(f"-I{folder}" for folder in includes), f"-I{_python_include()}"]
    options += [f"-I{_pybind_include()}"]
    common = hashlib.sha256(repr(options).encode())
    for path in headers:
        common.update(path.read_bytes())

    def compile_one(source: Path) -> Path:
        digest = common.copy()
        digest.update(source.read_bytes())
        done = BUILD / "objects" / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        _make(done, [*options, "-x", "c++", "-c", str(source)])
        return done

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        objects = list(pool.map(compile_one, sources))
    digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    library = BUILD / digest / name
    _make(library, ["-shared", *map(str, objects)])
    return library


def _make(path: Path, arguments: list[str]) -> None:
    # Several processes may build at once: each writes a file of its own and moves it.
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    command = ["g++", *arguments, "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    partial.replace(path)


def _python_include() -> str:
    return sysconfig.get_paths()["include"]


def _pybind_include() -> str:
    import pybind11

    return pybind11.get_include()
