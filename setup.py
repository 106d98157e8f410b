"""Build of pntk: the package list, and the extension module ``pntk._C``.

``PNTK_NATIVE`` decides about the extension: unset, it is built where that works and left out
where it does not; ``1`` makes a failure to build it an error; ``0`` leaves it out.
"""

import os
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def files(pattern: str) -> list[str]:
    """Return the paths under csrc/ that match, relative to the root as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def extensions() -> list[Pybind11Extension]:
    """Return the extension modules that PNTK_NATIVE asks for."""
    switch = os.environ.get("PNTK_NATIVE", "")
    if switch not in ("", "0", "1"):
        raise SystemExit(f"PNTK_NATIVE is {switch!r}; set it to 0, to 1, or not at all")
    if switch == "0":
        return []
    native = Pybind11Extension(
        "pntk._C",
        [*files("*.cpp"), *files("cpu/**/*.cpp")],
        include_dirs=["csrc"],
        depends=files("**/*.h"),
        cxx_std=17,
        extra_compile_args=["/O2"] if os.name == "nt" else ["-O3"],
        optional=switch != "1",
    )
    return [native]


setup(
    # The list is needed: with package_dir alone a wheel leaves out pntk/*.py and says nothing.
    packages=[*find_packages(include=["pntk", "pntk.*"]), "pntk.kernels"],
    package_dir={"pntk.kernels": "kernels"},
    package_data={"pntk": ["py.typed", "report/templates/*"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": build_ext},
)
