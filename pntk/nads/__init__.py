"""Neural anisotropy directions: which features of the input a kind of network prefers."""

from pntk.nads.compare import Comparison, compare
from pntk.nads.data import DirectionalLinearDataset, create_rfft2_direction
from pntk.nads.directional import DirectionalBias, directional_bias
from pntk.nads.gradient_covariance import GradientCovariance
from pntk.nads.metrics import Isotropy, isotropy
from pntk.nads.nads import NADs
from pntk.nads.poison import PoisonResult, poison_along, poison_experiment
from pntk.nads.search import most_isotropic, nads_grid

__all__ = [
    "Comparison",
    "DirectionalBias",
    "DirectionalLinearDataset",
    "GradientCovariance",
    "Isotropy",
    "NADs",
    "PoisonResult",
    "compare",
    "create_rfft2_direction",
    "directional_bias",
    "isotropy",
    "most_isotropic",
    "nads_grid",
    "poison_along",
    "poison_experiment",
]
