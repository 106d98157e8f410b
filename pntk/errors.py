"""Every error that pntk raises on purpose.

Each class derives from ``PntkError`` and from the builtin that a caller would expect, so that
``except ValueError`` and ``except OSError`` keep working. A message states the value seen, what
was expected, and the remedy.
"""

import torch

# what torch says where it raises no OutOfMemoryError: on a CPU, in cuBLAS, on Apple's GPUs
_SAID = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")


class PntkError(Exception):
    """Base class of all errors that pntk raises on purpose."""


class ConfigError(PntkError, ValueError):
    """An argument has a value that cannot work."""


class ModelError(PntkError, ValueError):
    """The model cannot be featurized as it is (no parameters, batch statistics, randomness)."""


class DataError(PntkError, ValueError):
    """A batch, a label or a data set is not what the output needs."""


class OutputError(PntkError, ValueError):
    """The differentiated output has the wrong shape or type."""


class NonFiniteError(PntkError, ArithmeticError):
    """A projected gradient holds NaN or infinity."""


class CheckError(PntkError, RuntimeError):
    """A self-check found rows that do not agree with the ordinary gradient."""


class OutOfMemoryError(PntkError, MemoryError):
    """A batch takes more memory than the device has."""


class KernelError(PntkError, RuntimeError):
    """A kernel fails, or gives other results than the reference, on this machine."""


class StoreError(PntkError, OSError):
    """A store file cannot be created, opened, resumed or trusted."""


class DistributedError(PntkError, RuntimeError):
    """The processes that share the work do not agree, or one of them has ended."""


class MissingExtraError(PntkError, ImportError):
    """An optional dependency is needed and not installed."""


class PntkWarning(UserWarning):
    """Something works, but not the way the caller may think."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says by this error that memory ran out."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
