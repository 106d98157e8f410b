"""Projected tangent kernels: each sample's gradient as k numbers, and what they make possible."""

from pntk import errors, outputs
from pntk._version import __version__

# Some functions take the place of the module or package of that name as attribute of pntk;
# `from pntk.ntk.projected import ...` finds the package all the same.
from pntk.attribution import Extremes, attribute
from pntk.embedding import embedding_gram, embeddings
from pntk.export import export
from pntk.featurizer import Featurizer
from pntk.imports import read_projection_ntk, read_trak
from pntk.lds import lds
from pntk.ntk.exact import EmpiricalNTK, empirical_ntk
from pntk.ntk.projected import ntk
from pntk.ntk.uncertainty import interval, kernel_std, order_probability
from pntk.ntk.variance import VarianceRatio, variance_ratio
from pntk.projection.spec import ProjectionSpec
from pntk.retrieval import TopK, topk
from pntk.store import FeatureStore, join, repair
from pntk.surrogate import KernelSurrogate, SurrogateReport
from pntk.unsharded import unsharded

__all__ = [
    "EmpiricalNTK",
    "Extremes",
    "FeatureStore",
    "Featurizer",
    "KernelSurrogate",
    "ProjectionSpec",
    "SurrogateReport",
    "TopK",
    "VarianceRatio",
    "__version__",
    "attribute",
    "embedding_gram",
    "embeddings",
    "empirical_ntk",
    "errors",
    "export",
    "interval",
    "join",
    "kernel_std",
    "lds",
    "ntk",
    "order_probability",
    "outputs",
    "read_projection_ntk",
    "read_trak",
    "repair",
    "topk",
    "unsharded",
    "variance_ratio",
]
