"""Rows on disk: one crash-safe HDF5 file that is written and read through memory maps.

The format is described in docs/store-format.md.
"""

from pntk.store.header import StoreHeader
from pntk.store.integrity import VerifyReport
from pntk.store.reader import FeatureStore
from pntk.store.writer import RowWriter

__all__ = ["FeatureStore", "RowWriter", "StoreHeader", "VerifyReport"]
