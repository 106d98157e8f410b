"""Which training samples raise or lower the outputs of the queries in a gallery.

Shapes: q queries; k samples of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from pntk.attribution import Extremes, attribute
from pntk.attribution.checkpoints import pair_up, reweighting_of
from pntk.errors import ConfigError
from pntk.report.neighbours import Labels
from pntk.store import FeatureStore

RIDGED = ("trak", "influence")
FORMULAS = {  # what a page can say; tracin of one checkpoint ranks as dot does
    "trak": "TRAK, φᵀ(ΦᵀΦ + λI)⁻¹φᵢ (1 − pᵢ)",
    "dot": "the kernel φᵀφᵢ",
    "cosine": "the cosine of φ and φᵢ",
    "influence": "an influence function, φᵀ(ΦᵀΦ/n + λI)⁻¹φᵢ",
}


@dataclass(frozen=True)
class Influence:
    """How to score training samples for a query.

    The stores may be others than those that neighbours are looked for in, such as of output
    margin, of the same samples in the same order.

    Args:
        method: ``trak``, ``dot``, ``cosine`` or ``influence``, as of ``pntk.attribution``. The
            ridge of ``trak`` and ``influence`` is "auto".
        train: rows of the training samples.
        queries: rows of the queries.
    """

    method: str
    train: FeatureStore
    queries: FeatureStore

    def check(self, train: FeatureStore, queries: FeatureStore) -> None:
        """Refuse what cannot be scored, or is of other samples than these stores, before any work.

        Raises:
            ConfigError: unknown method, or rows that it cannot use.
        """
        if self.method not in FORMULAS:
            raise ConfigError(
                f"unknown method {self.method!r}; expected one of {', '.join(FORMULAS)}"
            )
        for ours, theirs in ((self.train, train), (self.queries, queries)):
            if len(ours) != len(theirs):
                raise ConfigError(
                    f"{ours.path} has {len(ours)} rows and {theirs.path} {len(theirs)}; expected "
                    "stores of the same samples"
                )
        pair = pair_up(self.train, self.queries, self.method)
        if self.method == "trak":
            reweighting_of(pair, None)

    def extremes(self, rows: Labels, k: int) -> Extremes:
        """Return the k highest and k lowest scores of some queries."""
        ridge = "auto" if self.method in RIDGED else None
        found = attribute(
            self.train, self.queries[rows], self.method, ridge=ridge, top=k, both=True
        )
        assert isinstance(found, Extremes)
        return found

    def describe(self) -> str:
        """Return how samples were scored, in a sentence or two."""
        output = self.train.header.output.get("name")
        text = (
            f"Influence is {FORMULAS[self.method]}, with φ the row of the query and φᵢ that of the "
            f"training sample, of output {output} in {self.train.path.name}"
        )
        if self.method in RIDGED:
            text += ", Φ all of them and λ chosen by the rule of ridge auto"
        if self.method == "trak":
            text += (
                ". pᵢ is the probability of its own class: samples that the network is unsure of "
                "weigh most, and so come up for many queries"
            )
        return text + "."
