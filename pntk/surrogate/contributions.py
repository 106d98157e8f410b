"""What each train example adds to a logit of a surrogate.

Shapes: m test examples; n train examples; r of them shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pntk.errors import ConfigError


@dataclass(frozen=True)
class Contributions:
    """Terms of f(x) = b + sum_i beta_i K(x, x_i).

    Attributes:
        values: beta_i K(x, x_i), float64 [m, n].
        logits: f(x) as the surrogate gives it, float64 [m].
        intercept: b, float64 [m], that of each example's class.
        classes: position in ``classes_`` of the class whose logit it is, int64 [m].
    """

    values: Tensor
    logits: Tensor
    intercept: Tensor
    classes: Tensor

    @property
    def remainder(self) -> Tensor:
        """What the terms miss of the logit, float64 [m]: the optimiser's distance from its goal."""
        return self.logits - self.intercept - self.values.sum(1)

    def positive(self, num: int = 5) -> tuple[Tensor, Tensor]:
        """Return (train examples [m, r], terms [m, r]) that raise the logit most, largest first."""
        return self._extremes(num, largest=True)

    def negative(self, num: int = 5) -> tuple[Tensor, Tensor]:
        """Return (train examples [m, r], terms [m, r]) that lower the logit most."""
        return self._extremes(num, largest=False)

    def _extremes(self, num: int, largest: bool) -> tuple[Tensor, Tensor]:
        n = self.values.shape[1]
        if not 1 <= num <= n:
            raise ConfigError(f"num is {num}; expected 1 to {n:,}, the train examples")
        found = torch.topk(self.values, num, dim=1, largest=largest)
        return found.indices, found.values
