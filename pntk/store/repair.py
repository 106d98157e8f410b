"""Mark damaged rows as missing, so that they are made again."""

import os
from pathlib import Path

import numpy as np

from pntk.store.integrity import VerifyReport, verify
from pntk.store.joined import open_parts
from pntk.store.writer import RowWriter


def repair(path: str | os.PathLike[str], progress: bool = False) -> VerifyReport:
    """Verify a store, and mark exactly the rows that are damaged as missing.

    Of joined shards, the shards are repaired. Featurizing with the same settings makes the rows
    again.

    Returns:
        What was found before.

    Raises:
        StoreError: no store, or one that is being written.
    """
    _, parts = open_parts(Path(os.path.abspath(path)))
    report = verify(parts, progress)
    bad = np.array(report.bad_rows, dtype=np.int64)
    for part in parts:
        here = bad[(part.start <= bad) & (bad < part.stop)] - part.start
        if len(here):
            with RowWriter.reopen(part.path) as writer:
                writer.forget(here)
    return report
