"""Rows on disk: one crash-safe HDF5 file that is written and read through memory maps.

The format is described in docs/store-format.md.
"""

from pntk.store.header import Shard, StoreHeader
from pntk.store.integrity import VerifyReport
from pntk.store.layout import DONE, MISSING, SKIPPED
from pntk.store.reader import FeatureStore
from pntk.store.repair import repair
from pntk.store.shards import join
from pntk.store.writer import RowWriter

__all__ = [
    "DONE",
    "MISSING",
    "SKIPPED",
    "FeatureStore",
    "RowWriter",
    "Shard",
    "StoreHeader",
    "VerifyReport",
    "join",
    "repair",
]
