"""Check an installed pntk: complete, light to import, and not the checkout.

Usage: python check_installed.py CHECKOUT, from a directory outside the checkout.
"""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

HEAVY = (
    "faiss", "jinja2", "matplotlib", "pntk._C", "pntk._cuda", "pntk.kernels", "rich", "scipy",
    "sklearn", "transformers", "triton", "typer",
)  # fmt: skip


def main() -> None:
    """Run every check; the first that fails raises."""
    checkout = Path(sys.argv[1]).resolve()
    import torch  # what torch itself imports is not pntk's doing

    before = set(sys.modules)
    import pntk

    new = set(sys.modules) - before
    heavy = sorted(name for name in HEAVY if name in new)
    assert not heavy, f"import pntk also imports {heavy}"

    home = Path(pntk.__file__).resolve().parent
    assert checkout not in home.parents, f"pntk is imported from the checkout: {home}"
    installed = importlib.metadata.version("pntk")
    assert pntk.__version__ == installed, f"{pntk.__version__} is not the wheel's {installed}"

    import pntk._C
    import pntk.kernels
    from pntk.projection import bits, cuda

    assert bits.has_native(), bits.native_error()
    if os.environ.get("PNTK_CUDA") == "1":
        assert cuda.cuda_module() is not None, cuda.cuda_error()
        print(f"CUDA kernels for {cuda.cuda_module().architectures}")

    sources = [path.relative_to(checkout / "pntk") for path in (checkout / "pntk").rglob("*.py")]
    sources += [Path("kernels") / path.name for path in (checkout / "kernels").glob("*.py")]
    templates = (checkout / "pntk/report/templates").glob("*")
    sources += [path.relative_to(checkout / "pntk") for path in templates if path.is_file()]
    missing = [str(path) for path in [*sources, Path("py.typed")] if not (home / path).is_file()]
    assert not missing, f"the wheel lacks {missing}"
    print(f"pntk {installed} with torch {torch.__version__}: {len(sources)} files, all there")


if __name__ == "__main__":
    main()
