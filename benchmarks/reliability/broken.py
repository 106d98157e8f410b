"""Writers that are broken on purpose, each in one way, which ``power_cut`` has to notice."""

from __future__ import annotations

from typing import Any

from pntk.store import RowWriter

PAGE = 4096  # what msync brings to the disk


class DoneFirst(RowWriter):
    """Marks rows as done before their data is on the disk."""

    def sync(self) -> None:
        for places, state in self._pending:
            self._view("done")[places] = state
            self._flush("done", int(places.min()), int(places.max()))
        super().sync()


class RewritesInPlace(RowWriter):
    """Writes rows a second time while they count as done."""

    def forget(self, indices: Any) -> None:
        return None


class ShortFlush(RowWriter):
    """Leaves out the last rows of what is to be flushed."""

    def _flush(self, name: str, first: int, last: int) -> None:
        rows = PAGE // self._layout.extents[name].row_bytes
        super()._flush(name, first, max(first, last - rows))


def without(*names: str) -> type[RowWriter]:
    """Return a writer that never flushes these datasets."""

    class Without(RowWriter):
        def _flush(self, name: str, first: int, last: int) -> None:
            if name not in names:
                super()._flush(name, first, last)

    return Without


BROKEN: dict[str, type[RowWriter]] = {
    "done before data": DoneFirst,
    "features not flushed": without("features"),
    "columns not flushed": without("labels"),
    "checksums not flushed": without("checksums"),
    "done not flushed": without("done"),
    "flush ends too early": ShortFlush,
    "rows rewritten while done": RewritesInPlace,
}
