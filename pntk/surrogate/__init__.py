"""Is the network a kernel machine? Surrogates fit to its kernel, and how alike they are to it."""

from pntk.surrogate.comparison import Comparison, compare_kernels
from pntk.surrogate.contributions import Contributions
from pntk.surrogate.estimator import KernelSurrogate
from pntk.surrogate.metrics import SurrogateReport, evaluate

__all__ = [
    "Comparison",
    "Contributions",
    "KernelSurrogate",
    "SurrogateReport",
    "compare_kernels",
    "evaluate",
]
