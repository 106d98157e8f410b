"""Data attribution from rows: which training samples move which outputs, and by how much."""

from pntk.attribution.own import self_scores
from pntk.attribution.ridge import choose_ridge
from pntk.attribution.scores import METHODS, attribute
from pntk.attribution.tiles import Extremes

__all__ = ["METHODS", "Extremes", "attribute", "choose_ridge", "self_scores"]
