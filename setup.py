"""Build of pntk: the package list, and the extension module ``pntk._C``.

``PNTK_NATIVE`` decides about the extension: unset, it is built where that works and left out
where it does not; ``1`` makes a failure to build it an error; ``0`` leaves it out.
``PNTK_SANITIZE=1`` builds it for ``make sanitize``, which runs it with the sanitizers preloaded.
"""

import os
import platform
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext, has_flag
from setuptools import find_packages, setup

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


class build_levels(build_ext):
    """Compile each level's source with its own options."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        """Build one extension module."""
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


def extensions() -> list[Pybind11Extension]:
    """Return the extension modules that PNTK_NATIVE asks for."""
    switch = os.environ.get("PNTK_NATIVE", "")
    if switch not in ("", "0", "1"):
        raise SystemExit(f"PNTK_NATIVE is {switch!r}; set it to 0, to 1, or not at all")
    if switch == "0":
        return []
    sanitize = SANITIZERS if os.environ.get("PNTK_SANITIZE") == "1" else []
    native = Pybind11Extension(
        "pntk._C",
        [path for path in files("**/*.cpp") if X86 or Path(path).name not in LEVELS],
        include_dirs=["csrc"],
        depends=files("**/*.h"),
        cxx_std=17,
        extra_compile_args=[*sanitize, "-O1", "-g"] if sanitize else OPTIMISED,
        extra_link_args=sanitize,
        optional=switch != "1",
    )
    return [native]


setup(
    # The list is needed: with package_dir alone a wheel leaves out pntk/*.py and says nothing.
    packages=[*find_packages(include=["pntk", "pntk.*"]), "pntk.kernels"],
    package_dir={"pntk.kernels": "kernels"},
    package_data={"pntk": ["py.typed", "report/templates/*"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": build_levels},
)
