"""Projected tangent kernels: each sample's gradient as k numbers, and what they make possible."""

from pntk import errors, outputs
from pntk._version import __version__

# Some functions take the place of the module or package of that name as attribute of pntk;
# `from pntk.ntk.projected import ...` finds the package all the same.
from pntk.export import export
from pntk.featurizer import Featurizer
from pntk.ntk.exact import EmpiricalNTK, empirical_ntk
from pntk.ntk.projected import ntk
from pntk.ntk.uncertainty import interval, kernel_std, order_probability
from pntk.ntk.variance import VarianceRatio, variance_ratio
from pntk.projection.spec import ProjectionSpec
from pntk.retrieval import TopK, topk
from pntk.store import FeatureStore, join, repair
from pntk.unsharded import unsharded

__all__ = [
    "EmpiricalNTK",
    "FeatureStore",
    "Featurizer",
    "ProjectionSpec",
    "TopK",
    "VarianceRatio",
    "__version__",
    "empirical_ntk",
    "errors",
    "export",
    "interval",
    "join",
    "kernel_std",
    "ntk",
    "order_probability",
    "outputs",
    "repair",
    "topk",
    "unsharded",
    "variance_ratio",
]
