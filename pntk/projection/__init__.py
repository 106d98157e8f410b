"""Linear maps that turn a gradient into k numbers, each a pure function of seed and name."""

from pntk.projection.spec import FAMILIES, ProjectionSpec

__all__ = ["FAMILIES", "ProjectionSpec"]
