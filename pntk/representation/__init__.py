"""How alike the representations of two networks, or of two layers, are."""

# `similarity` takes the place of the module of that name as attribute of this package;
# `from pntk.representation.similarity import ...` finds the module all the same.
from pntk.representation.cka import MinibatchCKA
from pntk.representation.directions import Trajectory, between, random_direction, trajectory_pca
from pntk.representation.fourier import fourier_map
from pntk.representation.fourier_basis import fourier_basis
from pntk.representation.fourier_file import FourierMap
from pntk.representation.hooks import DistanceHook, SimilarityHook
from pntk.representation.landscape import loss_landscape
from pntk.representation.landscape_file import Landscape
from pntk.representation.layers import LayerSimilarity, layer_similarity
from pntk.representation.similarity import MEASURES, distance, similarity
from pntk.representation.tasks import TaskDistances, distance_over_tasks

__all__ = [
    "MEASURES",
    "DistanceHook",
    "FourierMap",
    "Landscape",
    "LayerSimilarity",
    "MinibatchCKA",
    "SimilarityHook",
    "TaskDistances",
    "Trajectory",
    "between",
    "distance",
    "distance_over_tasks",
    "fourier_basis",
    "fourier_map",
    "layer_similarity",
    "loss_landscape",
    "random_direction",
    "similarity",
    "trajectory_pca",
]
