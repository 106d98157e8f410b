"""Optional dependencies."""

import importlib
from types import ModuleType

from pntk.errors import MissingExtraError


def require(module: str, what: str = "the report", extra: str = "analysis") -> ModuleType:
    """Import a module of an extra, which ``what`` needs.

    Raises:
        MissingExtraError: The package is not installed. A package that is installed and broken
            raises its own error.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f'{what} needs {package}, which is not installed: pip install "pntk[{extra}]"'
        ) from error
