"""Which rule serves each parameter, as a table that prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class Coverage(Sequence[dict[str, Any]]):
    """Rows with keys name, shape, count, rule and module (or the reason for the fallback)."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @property
    def by_rule(self) -> float:
        """Share of the parameter count that rules serve, 0 to 1; the rest goes by torch.func."""
        total = sum(row["count"] for row in self.rows)
        return sum(row["count"] for row in self.rows if row["rule"] != "torch.func") / total

    def __str__(self) -> str:
        table = [("parameter", "shape", "count", "rule", "module")]
        for row in self.rows:
            shape = "x".join(map(str, row["shape"])) or "scalar"
            table.append((row["name"], shape, f"{row['count']:,}", row["rule"], row["module"]))
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True))
            for line in table
        ]
        total = sum(row["count"] for row in self.rows)
        lines.append(f"{total:,} parameters, {self.by_rule:.1%} by rules, the rest by torch.func")
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__
