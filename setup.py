"""Build of pntk: the package list, and the extension modules ``pntk._C`` and ``pntk._cuda``.

``PNTK_NATIVE`` decides about the CPU kernels, ``pntk._C``: unset, they are built where that works
and left out where it does not; ``1`` makes a failure to build them an error; ``0`` leaves them out.
``PNTK_CUDA`` does the same for the CUDA kernels, ``pntk._cuda``; unset, they are built where there
is an nvcc. Neither needs PyTorch or a GPU. ``PNTK_CUDA_ARCHS`` is such as ``80;90a;90-virtual``.
``PNTK_SANITIZE=1`` builds the CPU kernels for ``make sanitize``, which preloads the sanitizers.
"""

import os
import platform
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from pybind11.setup_helpers import Pybind11Extension, build_ext, has_flag
from setuptools import Extension, find_packages, setup
from setuptools.errors import CompileError

ROOT = Path(__file__).parent


def files(pattern: str) -> list[str]:
    """Return the paths under csrc/ that match, relative to the root as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


# Options of the sources that are for one instruction set each; levels.cpp picks at run time.
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
_AMX = ["-mavx512bf16", "-mavx512vbmi", "-mgfni", "-mamx-tile", "-mamx-bf16"]
LEVELS = {
    "level_avx2.cpp": ["-mavx2", "-mfma"],
    "level_avx512.cpp": [*_AVX512, "-mprefer-vector-width=512"],
    "level_amx.cpp": [*_AVX512, "-mprefer-vector-width=512", *_AMX],
}
OPTIMISED = ["/O2"] if os.name == "nt" else ["-O3"]
# GCC 12 finds its own AVX-512 headers uninitialised when sanitizing
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZERS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
X86 = platform.machine().lower() in ("x86_64", "amd64")

# sm_90a has what only Hopper has (wgmma); PTX is for chips that come later.
CUDA_ARCHS = "80;90a;90-virtual"
OLDEST_NVCC = 12  # the first that knows sm_90a


class build_kernels(build_ext):
    """Compile each level's source with its own options, and CUDA sources with nvcc."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension module."""
        if ext.name == CUDA_MODULE:
            build_cuda(ext, Path(self.build_temp), Path(self.get_ext_fullpath(ext.name)))
        else:
            self.build_levels(ext)

    def build_levels(self, ext: Extension) -> None:
        """Build the CPU kernels."""
        compile_one = self.compiler._compile
        levels = dict(LEVELS)
        if X86 and not has_flag(self.compiler, "-mamx-bf16"):
            levels["level_amx.cpp"] = []  # the source leaves its kernels out

        def with_options(obj, src, ext_name, cc_args, postargs, pp_opts):
            options = [*postargs, *levels.get(Path(src).name, [])]
            compile_one(obj, src, ext_name, cc_args, options, pp_opts)

        self.compiler._compile = with_options
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = compile_one


CUDA_MODULE = "pntk._cuda"


def nvcc() -> str | None:
    """Return the CUDA compiler, of CUDA_HOME or else on the PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")


def run_nvcc(*arguments: str) -> str:
    """Return what nvcc prints.

    Raises:
        CompileError: with what it said.
    """
    compiler = nvcc()
    if compiler is None:
        home = os.environ.get("CUDA_HOME")
        where = f"in bin of CUDA_HOME={home}" if home else "on the PATH (and CUDA_HOME is not set)"
        raise CompileError(
            f"there is no nvcc {where}; install the CUDA toolkit, or set PNTK_CUDA=0"
        )
    try:
        done = subprocess.run([compiler, *arguments], capture_output=True, text=True)
    except OSError as error:
        raise CompileError(f"{compiler} cannot be run: {error}") from None
    if done.returncode:
        raise CompileError(f"nvcc {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def cuda_targets(archs: str) -> list[str]:
    """Return nvcc's options for a list of architectures.

    >>> cuda_targets("90a;90-virtual")
    ['-gencode=arch=compute_90a,code=sm_90a', '-gencode=arch=compute_90,code=compute_90']
    """
    options = []
    for arch in archs.split(";"):
        found = re.fullmatch(r"(\d+a?)(-virtual)?", arch)
        if not found:
            raise CompileError(f"PNTK_CUDA_ARCHS holds {arch!r}; expected such as {CUDA_ARCHS}")
        code = "compute" if found[2] else "sm"
        options.append(f"-gencode=arch=compute_{found[1]},code={code}_{found[1]}")
    return options


def build_cuda(ext: Extension, folder: Path, module: Path) -> None:
    """Compile the CUDA kernels and link them with the static CUDA runtime."""
    version = re.search(r"release (\d+)", run_nvcc("--version"))
    if version is None or int(version[1]) < OLDEST_NVCC:
        raise CompileError(f"this nvcc is older than CUDA {OLDEST_NVCC}, which is needed")
    archs = os.environ.get("PNTK_CUDA_ARCHS") or CUDA_ARCHS
    options = ["-std=c++17", "-O3", "-Icsrc", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    options += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    options += [f'-DPNTK_CUDA_ARCHITECTURES="{archs}"', *cuda_targets(archs)]
    stamp = str(options)
    newest = max(Path(path).stat().st_mtime for path in [*ext.depends, *ext.sources])
    folder = folder / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "options"
    fresh = kept.exists() and kept.read_text() == stamp

    def compile_one(source: str) -> str:
        target = folder / f"{Path(source).name}.o"
        if not (fresh and target.exists() and target.stat().st_mtime > newest):
            run_nvcc(*options, "-c", source, "-o", str(target))
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, ext.sources))
    kept.write_text(stamp)
    module.parent.mkdir(parents=True, exist_ok=True)
    run_nvcc("-shared", "-cudart", "static", *cuda_targets(archs), *objects, "-o", str(module))


def switched(name: str) -> str:
    """Return an environment variable that is 0, 1 or not there."""
    switch = os.environ.get(name, "")
    if switch not in ("", "0", "1"):
        raise SystemExit(f"{name} is {switch!r}; set it to 0, to 1, or not at all")
    return switch


def extensions() -> list[Extension]:
    """Return the extension modules that PNTK_NATIVE and PNTK_CUDA ask for."""
    found = []
    if switched("PNTK_NATIVE") != "0":
        found.append(native_extension())
    cuda = switched("PNTK_CUDA")
    if cuda == "1" or (cuda == "" and nvcc()):
        sources = [*files("cuda/*.cu"), *files("cuda/*.cpp")]
        headers = files("cuda/*.h") + files("cuda/*.cuh")
        found.append(Extension(CUDA_MODULE, sources, depends=headers, optional=cuda != "1"))
    return found


def native_extension() -> Pybind11Extension:
    """Return the CPU kernels."""
    sanitize = SANITIZERS if os.environ.get("PNTK_SANITIZE") == "1" else []
    sources = files("*.cpp") + files("cpu/*.cpp")
    return Pybind11Extension(
        "pntk._C",
        [path for path in sources if X86 or Path(path).name not in LEVELS],
        include_dirs=["csrc"],
        depends=files("cpu/*.h"),
        cxx_std=17,
        extra_compile_args=[*sanitize, "-O1", "-g"] if sanitize else OPTIMISED,
        extra_link_args=sanitize,
        optional=os.environ.get("PNTK_NATIVE") != "1",
    )


setup(
    # The list is needed: with package_dir alone a wheel leaves out pntk/*.py and says nothing.
    packages=[*find_packages(include=["pntk", "pntk.*"]), "pntk.kernels"],
    package_dir={"pntk.kernels": "kernels"},
    package_data={"pntk": ["py.typed", "report/templates/*"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": build_kernels},
)
