"""StoreHeader: everything that defines the rows of a store, kept in the file as JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pntk.errors import StoreError

FEATURE_DTYPES = ("float32", "float64", "float16")
COLUMN_DTYPES = ("float32", "float64", "int32", "int64", "uint8")
OWN_DATASETS = ("features", "done", "checksums", "scales")
ABSENT = "absent"

Params = tuple[tuple[str, tuple[int, ...]], ...]
Difference = tuple[str, Any, Any]


@dataclass(frozen=True)
class Shard:
    """Which rows of a whole a store holds: ``start`` up to ``start`` plus its own number of rows.

    Args:
        index: number of the shard, 0 to count - 1.
        count: number of shards of the whole.
        start: first row.
        total: rows of the whole.

    Raises:
        StoreError: a value is no integer or out of range.
    """

    index: int
    count: int
    start: int
    total: int

    def __post_init__(self) -> None:
        values = (self.index, self.count, self.start, self.total)
        if any(type(value) is not int for value in values) or not (
            0 <= self.index < self.count and 0 <= self.start < self.total
        ):
            raise StoreError(
                f"header: shard is {self}, expected integers with 0 <= index < count and "
                "0 <= start < total"
            )


@dataclass(frozen=True)
class StoreHeader:
    """What the rows of a store are, and from what they were made.

    Values are brought to the form that JSON gives back (tuples inside dictionaries become lists),
    so that ``StoreHeader.from_json(header.to_json()) == header``.

    Args:
        rows: number of rows n, at least 1.
        width: numbers in a row k, at least 1.
        dtype: "float32", "float64", or "float16" (rows of float32 kept with 11 bits and a scale).
        projection: family, k, seed and whatever else defines the projection.
        output: what was differentiated.
        params: (name, shape) of each featurized parameter, in order.
        weights: fingerprint of the model's weights (hex).
        precision: precision of the forward and backward pass.
        columns: extra columns of length n, name -> dtype; kept in alphabetical order.
        info: versions, creation time and the like; kept, never compared.
        shard: which rows of a whole these are; None if they are the whole.

    Raises:
        StoreError: a value has the wrong type or range.
    """

    rows: int
    width: int
    dtype: str
    projection: dict[str, Any]
    output: dict[str, Any]
    params: Params
    weights: str
    precision: str
    columns: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    shard: Shard | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "width"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise StoreError(f"header: {name} is {value!r}, expected an integer of at least 1")
        if self.dtype not in FEATURE_DTYPES:
            raise StoreError(f"header: dtype is {self.dtype!r}, expected one of {FEATURE_DTYPES}")
        for name in ("weights", "precision"):
            if not isinstance(getattr(self, name), str):
                raise StoreError(f"header: {name} is {getattr(self, name)!r}, expected a string")
        for name in ("projection", "output", "info"):
            object.__setattr__(self, name, _json_dict(name, getattr(self, name)))
        object.__setattr__(self, "params", _checked_params(self.params))
        object.__setattr__(self, "columns", _checked_columns(self.columns))
        object.__setattr__(self, "shard", _checked_shard(self.shard))
        if self.shard is not None and self.shard.start + self.rows > self.shard.total:
            raise StoreError(f"header: {self.rows} rows do not fit into {self.shard}")

    def to_json(self) -> str:
        """Return the header as one JSON object with sorted keys, ASCII only."""
        values = {**vars(self), "shard": self.shard and asdict(self.shard)}
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "StoreHeader":
        """Read what ``to_json`` wrote.

        Raises:
            StoreError: not JSON, a field is missing or unknown, or a value is wrong.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"header: not valid JSON ({error})") from error
        expected = {entry.name for entry in fields(cls)}
        found = set(values) if isinstance(values, dict) else set()
        if found != expected:
            raise StoreError(
                f"header: missing fields {sorted(expected - found)}, unknown fields "
                f"{sorted(found - expected)}; the file is damaged or from another version of pntk"
            )
        return cls(**values)

    def difference(self, other: "StoreHeader") -> list[Difference]:
        """List (field, ours, theirs) for each compared field that differs.

        Entries of dictionaries are named with a dot, as in "projection.seed". Of ``params`` only
        the first parameter that differs is described. ``info`` is not compared.
        """
        found: list[Difference] = []
        ours, theirs = self._place(), other._place()
        if ours != theirs and "shard" in ours + theirs:
            found.append(("shard", ours, theirs))  # first, as it explains a difference in rows
        for name in ("rows", "weights", "width", "dtype", "precision"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                found.append((name, ours, theirs))
        for name in ("projection", "output", "columns"):
            found += _dict_difference(name, getattr(self, name), getattr(other, name))
        if self.params != other.params:
            found.append(_params_difference(self.params, other.params))
        return found

    def _place(self) -> str:
        """Which rows of a data set these are, in words."""
        if self.shard is None:
            return f"all {self.rows} rows"
        shard, last = self.shard, self.shard.start + self.rows - 1
        return f"shard {shard.index}/{shard.count}, rows {shard.start} to {last} of {shard.total}"

    def whole(self) -> "StoreHeader":
        """Return the header of the whole of which this is a shard."""
        if self.shard is None:
            return self
        return replace(self, rows=self.shard.total, shard=None)


def explain_difference(different: list[Difference]) -> str:
    """Why a header does not fit, from its first difference, and what can be done."""
    field, asked, found = different[0]
    if field == "rows":
        reason = f"the data set's length has changed: the file has {found} rows, now {asked}"
    elif field == "shard":
        reason = (
            f"the file holds {found}, asked was for {asked} "
            "(the number of rows, of shards and the batch size decide where shards are cut)"
        )
    elif field == "weights":
        reason = (
            "the model's weights differ from those that made the rows: "
            f"weights is {found!r} in the file, {asked!r} now"
        )
    else:
        reason = f"{field} is {found!r} in the file, {asked!r} was asked for"
    others = ", ".join(name for name, _, _ in different[1:])
    also = f" (also different: {others})" if others else ""
    return f"{reason}{also}. Use the file's settings, choose another path, or delete the file"


def _checked_shard(shard: object) -> Shard | None:
    if shard is None or isinstance(shard, Shard):
        return shard
    if not isinstance(shard, Mapping) or set(shard) != {entry.name for entry in fields(Shard)}:
        raise StoreError(f"header: shard is {shard!r}, expected index, count, start and total")
    return Shard(**shard)


def _json_dict(name: str, value: object) -> dict[str, Any]:
    """The dictionary as JSON gives it back."""
    if not isinstance(value, Mapping):
        raise StoreError(f"header: {name} is {value!r}, expected a dictionary")
    try:
        result: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"header: {name} cannot be written as JSON ({error})") from error
    return result


def _checked_params(params: Iterable[Any]) -> Params:
    try:
        result = tuple((name, tuple(shape)) for name, shape in params)
    except (TypeError, ValueError) as error:
        raise StoreError(f"header: params must be pairs of a name and a shape ({error})") from error
    for name, shape in result:
        if not isinstance(name, str) or any(type(size) is not int or size < 0 for size in shape):
            raise StoreError(f"header: params has {(name, shape)!r}, expected a name and a shape")
    return result


def _checked_columns(columns: object) -> dict[str, str]:
    if not isinstance(columns, Mapping):
        raise StoreError(f"header: columns is {columns!r}, expected a dictionary")
    for name, dtype in columns.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,99}", name):
            raise StoreError(f"header: column {name!r}: use letters, digits and underscores")
        if name in OWN_DATASETS:
            raise StoreError(f"header: column {name!r}: this name is taken by the format")
        if dtype not in COLUMN_DTYPES:
            raise StoreError(f"header: column {name!r} is {dtype!r}, use one of {COLUMN_DTYPES}")
    return dict(sorted(columns.items()))


def _dict_difference(
    name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[Difference]:
    return [
        (f"{name}.{key}", ours.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, ABSENT) != theirs.get(key, ABSENT)
    ]


def _params_difference(ours: Params, theirs: Params) -> Difference:
    """The first parameter that differs, as text."""
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1

    def describe(params: Params) -> str:
        if same == len(params):
            return f"{len(params)} parameters"
        name, shape = params[same]
        return f"{name} {list(shape)} (parameter {same + 1} of {len(params)})"

    return ("params", describe(ours), describe(theirs))
