"""FAISS indexes of rows: neighbours in less time than an exact search, most of them the right ones.

Needs the ``search`` extra. Shapes: n rows; m queries; d width of a row; k neighbours.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_64_hexdigest, xxh3_128

from pntk.errors import ConfigError, MissingExtraError, StoreError
from pntk.files import check_replaceable
from pntk.memory import parse_bytes
from pntk.retrieval import METRICS, TopK
from pntk.rows import Rows, as_rows, row_norms
from pntk.store import FeatureStore

KINDS = ("flat", "ivf", "ivfpq", "hnsw")
EXACT_KINDS = ("flat",)

_MAGIC = b"pntk FAISS index 1\n"
_END = struct.Struct("<Q16s")  # length of the JSON, and its checksum
_PIECE = 2**20  # bytes
_SAMPLED = 64  # rows that tell one set of rows from another
_PER_CENTROID = 39  # rows that FAISS wants at least for each centroid it is to find
_ENOUGH = 256  # and those beyond which it takes a sample
_BLOCK_BYTES = 2**25

Floats = NDArray[np.float32]
Made = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What a kind of index can be tuned by; None is a default chosen from n and d.

    Attributes:
        nlist: ``ivf``, ``ivfpq``: lists into which rows are sorted; 4 sqrt(n), or fewer where
            there are too few rows to learn that many from.
        nprobe: ``ivf``, ``ivfpq``: lists that are looked through for a query; sqrt(nlist), at
            least 8.
        pq_m: ``ivfpq``: pieces of a row, each of which is kept as a code; a divisor of d, by
            default the largest up to min(d / 2, 256).
        pq_bits: ``ivfpq``: bits of a code, 1 to 12; 8, or fewer likewise.
        hnsw_m: ``hnsw``: links of a row, at least 2; 32.
        ef_construction: ``hnsw``: candidates while the graph is built; 80.
        ef_search: ``hnsw``: candidates for a query; 128.
    """

    nlist: int | None = None
    nprobe: int | None = None
    pq_m: int | None = None
    pq_bits: int | None = None
    hnsw_m: int | None = None
    ef_construction: int | None = None
    ef_search: int | None = None


_TAKES = {
    "flat": (),
    "ivf": ("nlist", "nprobe"),
    "ivfpq": ("nlist", "nprobe", "pq_m", "pq_bits"),
    "hnsw": ("hnsw_m", "ef_construction", "ef_search"),
}


class FaissIndex:
    """An index of rows that FAISS searches; see :func:`build_index` and :func:`load_index`.

    Attributes:
        kind: one of ``KINDS``.
        metric: ``cosine`` or ``dot``.
        exact: whether it finds what an exact search finds.
        made_of: what it was made of: numbers of rows, width, and what a store says of its rows.
    """

    def __init__(self, index: Any, kind: str, metric: str, made_of: Made) -> None:
        self._index = index
        self.kind = kind
        self.metric = metric
        self.exact = kind in EXACT_KINDS
        self.made_of = made_of

    def __len__(self) -> int:
        """Return the number of rows that can be found."""
        return int(self._index.ntotal)

    @torch.no_grad()
    def search(self, queries: Any, k: int = 5) -> TopK:
        """Return, for each query, rows with the largest kernel entries, in float32.

        Args:
            queries: rows [m, d]: tensor, array or FeatureStore.
            k: how many, 1 to n.

        Returns:
            TopK of values [m, k] and indices [m, k]; -1 with -inf where no more were found.

        Raises:
            ConfigError: k out of range, rows of another width or map.
            StoreError: rows are missing.
        """
        rows = as_rows(queries, "queries")
        n, d = self.made_of["rows"], self.made_of["width"]
        if rows.shape[1] != d:
            raise ConfigError(f"queries are {rows.shape[1]} wide and the index {d}")
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
            raise ConfigError(f"k is {k!r}; expected 1 to {n}, the rows of the index")
        _check_map(self.made_of, queries)
        values = np.full((rows.shape[0], k), -np.inf, dtype=np.float32)
        indices = np.full((rows.shape[0], k), -1, dtype=np.int64)
        for places, x in _usable(rows, self.metric, _BLOCK_BYTES // (4 * d) + 1):
            found, at = self._index.search(x, k)
            found[at < 0] = -np.inf
            order = np.lexsort((at, -found), axis=1)  # among equals the lower index first
            values[places] = np.take_along_axis(found, order, 1)
            indices[places] = np.take_along_axis(at, order, 1)
        return TopK(torch.from_numpy(values), torch.from_numpy(indices))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file, all of it or nothing.

        FAISS can read the file too. What it was made of, and a checksum, stand at its end.

        Raises:
            ConfigError: the path is not one to write to.
            StoreError: it cannot be written.
        """
        faiss = import_faiss()
        path = Path(path)
        check_replaceable(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        digest = xxh3_128()
        try:
            with open(temporary, "wb") as file:

                def write(data: bytes) -> int:
                    digest.update(data)
                    return file.write(data)

                faiss.write_index(self._index, faiss.PyCallbackIOWriter(write))
                about = {
                    "kind": self.kind,
                    "metric": self.metric,
                    "made_of": self.made_of,
                    "bytes": file.tell(),
                    "xxh3_128": digest.hexdigest(),
                    "faiss": faiss.__version__,
                }
                text = json.dumps(about, sort_keys=True).encode()
                file.write(text + _END.pack(len(text), xxh3_128(text).digest()) + _MAGIC)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be written ({error.strerror}); free space?"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"FaissIndex({self.kind!r}, {self.metric!r}, {len(self):,} rows)"


@torch.no_grad()
def build_index(
    store: Any,
    kind: str = "flat",
    *,
    metric: str = "cosine",
    memory_budget: int | str = "1GB",
    seed: int = 0,
    **options: int | None,
) -> FaissIndex:
    """Make an index of a store's rows, which are read block by block.

    ``flat`` compares all rows, as :func:`pntk.topk` does. ``ivf`` sorts rows into lists by k-means
    and looks through a few of them; ``ivfpq`` also keeps codes in place of the rows, so that its
    scores are estimates; ``hnsw`` follows links between rows. With ``cosine`` rows are normalised.
    Rows that are skipped or not finite are left out. Indexes are in float32.

    Args:
        store: rows [n, d]: tensor, array or FeatureStore.
        kind: ``flat``, ``ivf``, ``ivfpq`` or ``hnsw``.
        metric: ``cosine`` or ``dot``.
        memory_budget: what building may take beyond the index itself: bytes, or a text such as
            "500MB". It bounds the sample that ``ivf`` and ``ivfpq`` learn from.
        seed: of that sample, and of k-means.
        options: of the kind; see :class:`Options`.

    Returns:
        The index, in memory: 4 n d bytes, and for ``ivfpq`` n pq_m pq_bits / 8.

    Raises:
        ConfigError: an unknown kind, metric or option, too few rows, a budget that is too small.
        MissingExtraError: FAISS is not installed.
        StoreError: rows are missing.

    Source: Douze et al. 2024, "The Faiss library", https://arxiv.org/abs/2401.08281
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of index {kind!r}; expected one of {', '.join(KINDS)}")
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; expected one of {', '.join(METRICS)}")
    asked = _options(kind, options)
    rows = as_rows(store, "store")
    n, d = rows.shape
    block, sample = _fit(d, memory_budget)
    faiss = import_faiss()
    chosen = _choose(kind, asked, min(n, sample), n, d)
    index = _empty(faiss, kind, chosen, d, seed)
    if not index.is_trained:
        index.train(_sample(rows, metric, min(sample, _wanted(chosen)), seed, _needed(chosen)))
    for places, x in _usable(rows, metric, block):
        index.add_with_ids(x, places)
    return FaissIndex(index, kind, metric, _made_of(store))


def load_index(
    path: str | os.PathLike[str],
    store: Any,
    *,
    kind: str | None = None,
    metric: str | None = None,
) -> FaissIndex:
    """Read an index that ``save`` wrote, if it is of these rows.

    Load only files that you made yourself: the checksum finds damage, not malice, and FAISS does
    not withstand files made to break it.

    Args:
        path: the file.
        store: the rows that the index is to be of: tensor, array or FeatureStore.
        kind, metric: what it is to be, or None for whatever it is.

    Raises:
        ConfigError: the index was made of other rows, or is of another kind or metric.
        MissingExtraError: FAISS is not installed.
        StoreError: no such file, not an index of pntk, or damaged.
    """
    faiss = import_faiss()
    path = Path(path)
    try:
        with open(path, "rb") as file:
            about = _about(path, file)
            for field, asked in (("kind", kind), ("metric", metric)):
                if asked is not None and asked != about[field]:
                    raise ConfigError(
                        f"{path} has the {field} {about[field]!r}, not {asked!r}; ask for that, or "
                        "choose another path"
                    )
            _check_made_of(path, about["made_of"], _made_of(store))
            _check_content(path, file, about)
            file.seek(0)
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except RuntimeError as error:  # another version of FAISS
        raise StoreError(
            f"{path}: FAISS {faiss.__version__} cannot read what {about['faiss']} wrote "
            f"({str(error).splitlines()[0]}); build the index again"
        ) from error
    return FaissIndex(index, about["kind"], about["metric"], about["made_of"])


def import_faiss() -> ModuleType:
    """Import FAISS.

    Its wheels bring an OpenMP of their own, GNU's like PyTorch's. Where PyTorch was imported first
    FAISS's calls go to the one that is there, so that both obey ``torch.set_num_threads``; else
    FAISS has threads of its own, and ``faiss.omp_set_num_threads``. Results are the same.

    Raises:
        MissingExtraError: it is not installed. One that is broken raises its own error.
    """
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "faiss":
            raise
        raise MissingExtraError(
            'indexes need faiss, which is not installed: pip install "pntk[search]"'
        ) from error


# ---- options -----------------------------------------------------------------------------------


def _options(kind: str, given: dict[str, int | None]) -> Options:
    """Return what was asked for.

    Raises:
        ConfigError: an option that the kind does not have, or no positive number.
    """
    for name, value in given.items():
        if name not in _TAKES[kind]:
            takes = ", ".join(_TAKES[kind]) or "none"
            raise ConfigError(f"{kind!r} has no option {name!r}; it takes {takes}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"{name} is {value!r}; expected a positive integer")
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected a positive integer")
    return Options(**given)


def _choose(kind: str, asked: Options, sample: int, n: int, d: int) -> dict[str, int]:
    """Return every option of a kind, those not asked for as n and d suggest.

    Args:
        sample: rows that can be learnt from.

    Raises:
        ConfigError: a value that d does not allow.
    """
    most = max(1, sample // _PER_CENTROID)  # centroids
    nlist = asked.nlist or min(most, math.ceil(4 * math.sqrt(n)))
    chosen = {
        "nlist": nlist,
        "nprobe": min(nlist, asked.nprobe or max(8, math.ceil(math.sqrt(nlist)))),
        "pq_m": asked.pq_m or next(m for m in range(max(1, min(d // 2, 256)), 0, -1) if d % m == 0),
        "pq_bits": asked.pq_bits or min(8, max(1, int(math.log2(most)))),
        "hnsw_m": asked.hnsw_m or 32,
        "ef_construction": asked.ef_construction or 80,
        "ef_search": asked.ef_search or 128,
    }
    chosen = {name: value for name, value in chosen.items() if name in _TAKES[kind]}
    if d % chosen.get("pq_m", 1):
        raise ConfigError(
            f"pq_m is {chosen['pq_m']}, which does not divide the {d} numbers of a row; "
            "choose a divisor"
        )
    if chosen.get("pq_bits", 1) > 12:
        raise ConfigError(f"pq_bits is {chosen['pq_bits']}; expected 1 to 12")
    if chosen.get("hnsw_m", 2) < 2:
        raise ConfigError(f"hnsw_m is {chosen['hnsw_m']}; expected at least 2")
    return chosen


def _needed(chosen: dict[str, int]) -> int:
    """Return how many rows it takes to learn from at least."""
    return max(chosen["nlist"], 2 ** chosen.get("pq_bits", 0))


def _wanted(chosen: dict[str, int]) -> int:
    """Return how many rows FAISS would use, had it more."""
    return _ENOUGH * _needed(chosen)


def _empty(faiss: ModuleType, kind: str, chosen: dict[str, int], d: int, seed: int) -> Any:
    """Return an index of inner products without rows, which takes numbers for them."""
    name = {
        "flat": "IDMap,Flat",
        "ivf": "IVF{nlist},Flat",
        "ivfpq": "IVF{nlist},PQ{pq_m}x{pq_bits}",
        "hnsw": "IDMap,HNSW{hnsw_m},Flat",
    }[kind].format(**chosen)
    index = faiss.index_factory(d, name, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        graph = faiss.downcast_index(index.index).hnsw
        graph.efConstruction, graph.efSearch = chosen["ef_construction"], chosen["ef_search"]
    for part in ([index] if "nlist" in chosen else []) + ([index.pq] if "pq_m" in chosen else []):
        part.cp.seed = seed
        part.cp.min_points_per_centroid = 1  # fewer than it likes is no warning on stdout
    if "nprobe" in chosen:
        index.nprobe = chosen["nprobe"]
    return index


# ---- rows --------------------------------------------------------------------------------------


def _fit(d: int, budget: int | str) -> tuple[int, int]:
    """Return rows of a block and of a sample, which FAISS copies: a quarter of the budget each.

    Raises:
        ConfigError: the budget is too small.
    """
    given = parse_bytes(budget) or 0
    smallest = 16 * 8 * d  # a row of float64 in each of three blocks, and its copies
    if given < smallest:
        raise ConfigError(
            f"memory_budget is {given:,} bytes; rows of this width need at least {smallest:,}"
        )
    return max(1, min(_BLOCK_BYTES, given // 16) // (8 * d)), given // 4 // (4 * d)


def _usable(rows: Rows, metric: str, size: int) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Yield (places, rows [b, d]) of the rows that an index takes, a block at a time."""
    skipped = rows.skipped
    for start, block in rows.blocks(size):
        places = np.setdiff1d(np.arange(start, start + len(block)), skipped, assume_unique=True)
        yield _ready(block[torch.from_numpy(places - start)], places, metric)


def _ready(
    block: Tensor, places: NDArray[np.int64], metric: str
) -> tuple[NDArray[np.int64], Floats]:
    """Return the rows that are finite as FAISS takes them, and their places."""
    norms = row_norms(block)
    finite = norms.isfinite()
    if not bool(finite.all()):
        block, norms, places = block[finite], norms[finite], places[finite.numpy()]
    if metric == "cosine":
        block = block / norms.masked_fill(norms == 0, 1)[:, None]
    return places, np.ascontiguousarray(block.float().cpu().numpy())


def _sample(rows: Rows, metric: str, size: int, seed: int, needed: int) -> Floats:
    """Return up to ``size`` random rows [.., d] to learn from.

    Raises:
        ConfigError: fewer than are needed.
    """
    usable = np.setdiff1d(np.arange(rows.shape[0]), rows.skipped, assume_unique=True)
    drawn = np.sort(np.random.default_rng(seed).permutation(usable)[:size])
    sample = np.empty((len(drawn), rows.shape[1]), dtype=np.float32)
    count = 0
    for place in drawn.tolist():
        row = _ready(rows.block(place, place + 1), drawn[:1], metric)[1]
        sample[count : count + len(row)] = row
        count += len(row)
    if count < needed:
        raise ConfigError(
            f"{count} rows can be learnt from, and this index needs at least {needed}; choose "
            "fewer lists (nlist) and bits (pq_bits), a larger memory_budget, or kind='flat'"
        )
    return sample[:count]


# ---- what an index was made of -----------------------------------------------------------------


def _made_of(store: Any) -> Made:
    """Return what tells these rows from others, without reading all of them."""
    rows = as_rows(store, "store")
    n, d = rows.shape
    digest = xxh3_128()
    for i in np.unique(np.linspace(0, n - 1, _SAMPLED).astype(np.int64)).tolist():
        digest.update(rows.block(i, i + 1).cpu().numpy().tobytes())
    return {"rows": n, "width": d, **_map_of(store), "content": digest.hexdigest()}


def _map_of(store: Any) -> Made:
    """Return what made the rows of a store, or nothing."""
    if not isinstance(store, FeatureStore):
        return {}
    header = store.header
    return {
        "projection": header.projection,
        "output": header.output,
        "params": xxh3_64_hexdigest(json.dumps(header.params).encode()),
        "weights": header.weights,
    }


def _check_map(made_of: Made, queries: Any) -> None:
    """Refuse queries that another map made than the rows of the index.

    Raises:
        ConfigError: naming the field that differs.
    """
    for field, theirs in _map_of(queries).items():
        if field in made_of and made_of[field] != theirs:
            shown = "other parameters" if field == "params" else f"{theirs} and {made_of[field]}"
            raise ConfigError(
                f"{queries.path} and the index differ in {field} ({shown}); rows are comparable "
                "only when made by one model, output and projection"
            )


def _check_made_of(path: Path, found: Made, expected: Made) -> None:
    for field in ("rows", "width", "projection", "output", "params", "weights", "content"):
        ours, theirs = expected.get(field), found.get(field)
        if ours != theirs:
            shown = f": {theirs!r} in the index, {ours!r} now" if field in ("rows", "width") else ""
            raise ConfigError(
                f"{path} was made of other rows (different {field}{shown}); build the index again, "
                "or choose another path"
            )


# ---- the file ----------------------------------------------------------------------------------


def _about(path: Path, file: BinaryIO) -> dict[str, Any]:
    """Return what stands at the end of the file.

    Raises:
        StoreError: it is not there, or damaged.
    """
    end = file.seek(0, os.SEEK_END)
    tail = _END.size + len(_MAGIC)
    file.seek(max(0, end - tail))
    last = file.read()
    if not last.endswith(_MAGIC) or len(last) < tail:
        raise StoreError(
            f"{path}: is not an index of pntk, or it is truncated; build the index again, or check "
            "the path"
        )
    length, checksum = _END.unpack(last[: _END.size])
    text = b""
    if length <= end - tail:
        file.seek(end - tail - length)
        text = file.read(length)
    if xxh3_128(text).digest() != checksum:
        raise _damaged(path)
    about: dict[str, Any] = json.loads(text)
    if about["bytes"] + length + tail != end:
        raise _damaged(path)
    return about


def _check_content(path: Path, file: BinaryIO, about: dict[str, Any]) -> None:
    """Compare the checksum before FAISS sees a byte: it may crash on damaged files."""
    digest, left = xxh3_128(), about["bytes"]
    file.seek(0)
    while left:
        piece = file.read(min(_PIECE, left))
        if not piece:
            break
        digest.update(piece)
        left -= len(piece)
    if digest.hexdigest() != about["xxh3_128"]:
        raise _damaged(path)


def _damaged(path: Path) -> StoreError:
    return StoreError(f"{path}: the index is damaged (its checksum differs); build it again")
