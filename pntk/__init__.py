"""Projected tangent kernels: each sample's gradient as k numbers, and what they make possible."""

from pntk import errors, outputs
from pntk._version import __version__
from pntk.featurizer import Featurizer

# The function takes the place of its package as attribute of pntk; `from pntk.ntk.projected import
# ...` finds the package all the same.
from pntk.ntk.projected import ntk
from pntk.projection.spec import ProjectionSpec
from pntk.retrieval import TopK, topk
from pntk.store import FeatureStore

__all__ = [
    "FeatureStore",
    "Featurizer",
    "ProjectionSpec",
    "TopK",
    "__version__",
    "errors",
    "ntk",
    "outputs",
    "topk",
]
