"""Exact search against FAISS: the same neighbours, of rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from benchmarks.registry import Check, Entry, Options, Row, Unavailable, progress, require
from benchmarks.timing import calls_in, interleaved, repeated
from pntk import TopK, retrieval, topk
from pntk.errors import MissingExtraError
from pntk.faiss_index import import_faiss
from pntk.retrieval import METRICS

QUERIES, NEIGHBOURS = (1, 10, 100, 1000), (1, 10, 100)
SIZES = ((64, 20_000), (64, 200_000), (512, 20_000), (512, 200_000), (4096, 20_000))
FULL_SIZES = ((4096, 200_000),)
QUICK_SIZES = ((16, 500),)
CHECKED = (128, 5000, 50, 20)  # d, n, m, k
BOUND = 1e-5
ROUND_SECONDS, ROW_SECONDS = 0.05, 20.0
COPIES = 3  # of the rows: as they are, normalised, and FAISS's own


class Problem(NamedTuple):
    """Rows [n, d] and queries [m, d], and what FAISS gets: both normalised where it is to be."""

    rows: Tensor
    queries: Tensor
    faiss_rows: Tensor
    faiss_queries: Tensor


class Search(Entry):
    """Time of ``pntk.topk`` over that of FAISS."""

    name = "search"
    summary = (
        "Exact nearest rows of random rows in memory, on a CPU: pntk.topk against "
        "faiss.IndexFlatIP, which for cosines gets rows that are normalised already."
    )

    def check(self, options: Options) -> list[Check]:
        """Compare both with float64: scores, and the rows found by the scores that they have."""
        faiss = _faiss()
        d, n, m, k = CHECKED
        checks = []
        for metric in METRICS:
            problem = _problem(metric, d, n, m)
            exact = problem.faiss_queries.double() @ problem.faiss_rows.double().T
            best = exact.topk(k, dim=1).values
            theirs = _index(faiss, problem).search(problem.faiss_queries.numpy(), k)
            for who, found in (
                ("pntk.topk", topk(problem.queries, problem.rows, k, metric=metric)),
                ("IndexFlatIP", TopK(*map(torch.from_numpy, theirs))),
            ):
                size = best.abs().max()
                scores = float((found.values - best).abs().max() / size)
                rows = float((exact.gather(1, found.indices) - best).abs().max() / size)
                what = f"{who}, {metric}, {n} x {d}, against float64"
                checks += [require(f"scores of {what}", scores, BOUND)]
                checks += [require(f"rows of {what}", rows, BOUND)]
        return checks

    def measure(self, options: Options) -> Iterator[Row]:
        """Time all numbers of queries and neighbours on one set of rows after the other."""
        faiss = _faiss()
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.notes.append(
            f"FAISS {faiss.__version__} ({faiss.get_compile_options().strip()}). A ratio below 1 "
            "says that pntk is faster. For cosines pntk computes the norms of the rows in every "
            "search; FAISS does not: its rows were normalised before. 'of product' is the time of "
            "the matrix product alone, as pntk has it made, over that of the search."
        )
        for d, n in QUICK_SIZES if options.quick else SIZES + FULL_SIZES * options.full:
            if COPIES * 4 * n * d > psutil.virtual_memory().available / 2:
                self.notes.append(f"{n:,} rows of width {d} were left out for lack of memory.")
                continue
            for metric in METRICS:
                problem = _problem(metric, d, n, max(QUERIES))
                index = _index(faiss, problem)
                for m in QUERIES[:2] if options.quick else QUERIES:
                    product = _product_seconds(problem, m)
                    for k in NEIGHBOURS:
                        yield self._at(problem, index, metric, m, k, product, options)

    def _at(
        self,
        problem: Problem,
        index: Any,
        metric: str,
        m: int,
        k: int,
        product: float,
        options: Options,
    ) -> Row:
        n, d = problem.rows.shape
        case = f"{metric}, d = {d}, n = {n:,}, m = {m}, k = {k}"
        progress(case)
        queries, theirs = problem.queries[:m], problem.faiss_queries[:m].numpy()
        ours_call = lambda: topk(queries, problem.rows, k, metric=metric)  # noqa: E731
        count = calls_in(ours_call, ROUND_SECONDS)
        times = interleaved(
            {
                "pntk": repeated(ours_call, count),
                "FAISS": repeated(lambda: index.search(theirs, k), count),
            },
            options.repeats,
            warmup=1,
            seconds=ROW_SECONDS,
        )
        ours = times.of("pntk").times(1 / count)
        return Row(
            case,
            {"pntk / FAISS": times.ratio("pntk", "FAISS")},
            {
                "pntk [ms]": ours.times(1e3),
                "FAISS [ms]": times.of("FAISS").times(1e3 / count),
                "pntk [GF/s]": 2e-9 * m * n * d / ours.median,
                "of product": product / ours.median,
            },
        )


def _faiss() -> ModuleType:
    try:
        return import_faiss()
    except MissingExtraError as error:
        raise Unavailable(str(error)) from None


def _problem(metric: str, d: int, n: int, m: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, d, generator=generator)
    queries = torch.randn(m, d, generator=generator)
    if metric == "dot":
        return Problem(rows, queries, rows, queries)
    normalize = torch.nn.functional.normalize
    return Problem(rows, queries, normalize(rows), normalize(queries))


def _index(faiss: ModuleType, problem: Problem) -> Any:
    index = faiss.IndexFlatIP(problem.rows.shape[1])
    index.add(problem.faiss_rows.numpy())
    return index


def _product_seconds(problem: Problem, m: int) -> float:
    """Return the time of the scores of all rows alone, from that of a tile that fits a cache."""
    n, d = problem.rows.shape
    y = problem.rows[: max(32, min(2**21 // m, 2**22 // d))]
    call = repeated(lambda: retrieval.product(problem.queries[:m], y), 5)
    times = interleaved({"product": call}, 5)
    return times.of("product").median / 5 * n / len(y)
