"""One parameter's share of an exact tangent kernel, from per-sample gradients kept as factors.

With G = sum_t rows_t columns_t^T, an entry <G(x), G(x')> is

- by factors: sum_{t, t'} <rows_t, rows'_t'> <columns_t, columns'_t'>, T^2 (O + Q) multiplications
  and no gradient is ever made;
- by gradients: O Q multiplications, once each sample's G has been made, in slices that fit.

:func:`cost` counts both, and the cheaper one is taken.

Shapes: n, m samples on the left and right; O, Q rows and columns of the parameter's matrix; T
positions; A outputs whose pairs are all wanted; S outputs that are summed over; g groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pntk.ntk.factors import Dense, Lookup, Piece, Product
from pntk.products import product

_PAIRS = 2**21  # pairs of positions whose inner products are held at a time
_STRIP = 256  # rows of a symmetric kernel that are computed at a time, from the diagonal on
# what the products of pairs cost beside the multiplications that make them, counted in those:
# they are written, read, multiplied and added up
_ELEMENTWISE = 32

Pieces = Sequence[Piece]  # of one output: one for each call of a layer that owns the parameter
Outputs = Sequence[Sequence[Pieces]]  # [A][S]


@dataclass(frozen=True)
class Sides:
    """Which samples of a batch are the rows and columns of a kernel.

    Attributes:
        left: n, the first ones.
        right: m, those after them; None for the left ones again, of whose kernel the upper
            triangle is enough.
    """

    left: int
    right: int | None = None

    @property
    def symmetric(self) -> bool:
        return self.right is None

    @property
    def columns(self) -> int:
        return self.left if self.right is None else self.right

    @property
    def batch(self) -> int:
        return self.left + (self.right or 0)

    def blocks(self, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
        """Yield blocks that cover the kernel; of a symmetric one at least the upper triangle."""
        for i in range(0, self.left, rows):
            for j in range(i if self.symmetric else 0, self.columns, columns):
                yield slice(i, min(i + rows, self.left)), slice(j, min(j + columns, self.columns))

    def of_right(self, part: slice) -> slice:
        """Return where columns of the kernel are in the batch."""
        offset = 0 if self.symmetric else self.left
        return slice(part.start + offset, part.stop + offset)


@dataclass(frozen=True)
class Sizes:
    """What decides which way is the cheaper one.

    Attributes:
        positions: T, of all calls together.
        shared: features of the factor that is the same for all outputs.
        varying: features of the other one.
        entries: O Q.
        factors: whether there is a way by factors.
        dense: whether the gradients are there already.
    """

    positions: int
    shared: int
    varying: int
    entries: int
    factors: bool
    dense: bool


def sizes_of(pieces: Pieces, shared: bool | None = True) -> Sizes:
    """Return the sizes of one output's pieces.

    Args:
        shared: as :func:`shared_factor` found of two outputs.
    """
    first = pieces[0]
    factors = isinstance(first, (Product, Lookup)) and all(
        type(p) is type(first) and _groups(p) == _groups(first) for p in pieces
    )
    same, other = first.width * _groups(first), first.height
    if isinstance(first, Lookup):
        same, other = 1, first.width  # equal or not
    elif shared is False:
        same, other = other, same
    return Sizes(
        positions=sum(piece.positions for piece in pieces),
        shared=same,
        varying=other,
        entries=first.height * first.width,
        factors=factors and shared is not None,
        dense=all(isinstance(piece, Dense) for piece in pieces),
    )


def cost(sizes: Sizes, summed: int, pairs: int, left: int, right: int) -> tuple[float, float]:
    """Return the multiplications of an entry by factors and by gradients.

    Args:
        summed: S.
        pairs: A^2 for all pairs of outputs, 1 otherwise.
        left, right: samples among which the work of making a gradient is shared.
    """
    t, outputs = sizes.positions, summed * pairs**0.5
    by_factors = t * t * (sizes.shared + pairs * (summed * sizes.varying + _ELEMENTWISE))
    making = 0.0 if sizes.dense else t * sizes.entries * outputs * (1 / left + 1 / right)
    by_gradients = summed * pairs * sizes.entries + making
    return (by_factors if sizes.factors else float("inf")), by_gradients


# ---- by factors --------------------------------------------------------------------------------


def shared_factor(pieces: Pieces, others: Pieces) -> bool | None:
    """Return which factor two outputs share: True the columns, False the rows, None neither."""
    return next((columns for columns in (True, False) if _share(pieces, others, columns)), None)


def _share(pieces: Pieces, others: Pieces, columns: bool) -> bool:
    """Whether two outputs share their columns, or their rows."""
    if len(pieces) != len(others):
        return False
    if all(isinstance(p, Lookup) for p in pieces):
        return columns  # the rows that are looked up, which stand for columns of zeros and ones
    return all(
        isinstance(p, Product)
        and isinstance(q, Product)
        and (p.columns.tensor is q.columns.tensor if columns else p.rows is q.rows)
        for p, q in zip(pieces, others, strict=True)
    )


class Factors:
    """The factors of one parameter and a number of outputs, of which one is the same for all.

    Args:
        shared: whether the columns are, or the rows.
        outputs: (A, S).
        ones: whether a bias belongs to the parameter: its gradient is that of one more column of
            ones.
    """

    def __init__(self, shared: bool, outputs: tuple[int, int], ones: bool = False) -> None:
        self._shared, self._outputs, self._ones = shared, outputs, ones
        self._pieces: Pieces = ()  # of the first output
        self._varying: Tensor | None = None  # [T, A, b, g, S, f]
        self._missing = {(a, s) for a in range(outputs[0]) for s in range(outputs[1])}

    def add(self, a: int, s: int, pieces: Pieces) -> bool:
        """Take the pieces of an output; False if they do not share that factor with the first."""
        if not self._pieces:
            self._pieces = pieces
        elif not _share(pieces, self._pieces, self._shared):
            return False
        batch = slice(0, batch_of(pieces[0]))
        each = [_factor(p, batch, not self._shared) for p in pieces]  # [T, b, g, f]
        found = torch.cat(each) if len(each) > 1 else each[0]
        if self._varying is None:
            t, b, g, f = found.shape
            number, summed = self._outputs
            self._varying = found.new_empty(t, number, b, g, summed, f)
        self._varying[:, a, :, :, s] = found
        self._missing.discard((a, s))
        return True

    def contract(self, sides: Sides, kernel: Tensor) -> None:
        """Add to a kernel [A, n, A, m], and forget the factors."""
        varying, self._varying = self._varying, None
        if varying is None:
            return
        for number, s in self._missing:  # outputs that do not depend on the parameter
            varying[:, number, :, :, s] = 0
        t, a, _, groups, *_ = varying.shape
        step = max(1, int(_PAIRS**0.5) // (t * a))
        rows = max(1, min(step, _STRIP // t)) if sides.symmetric else step
        for group in range(groups):
            last: tuple[slice, Tensor] | None = None
            for i, j in sides.blocks(rows, step):
                if last is None or last[0] != i:
                    last = (i, self._common(i, group))
                inner = _inner(last[1], self._common(sides.of_right(j), group))  # [T, n, T, m]
                if self._ones:
                    inner += 1
                left = varying[:, :, i, group].flatten(3)
                right = varying[:, :, sides.of_right(j), group].flatten(3)
                pairs = product(left.flatten(0, 2), right.flatten(0, 2))
                pairs = pairs.view(*left.shape[:3], *right.shape[:3])  # [T, A, n, T, A, m]
                if t == 1:
                    kernel[:, i, :, j].addcmul_(pairs[0, :, :, 0], inner[0, None, :, 0, None])
                else:
                    pairs *= inner[:, None, :, :, None]
                    kernel[:, i, :, j] += pairs.sum((0, 3))
        self._pieces = ()

    def _common(self, part: slice, group: int) -> Tensor:
        """Return the shared factor [T, s, f] of some samples; of look-ups ids [T, s]."""
        first = self._pieces[0]
        if isinstance(first, Lookup):
            return torch.cat([p.ids[part].T for p in self._pieces if isinstance(p, Lookup)])
        found = [_factor(p, part, self._shared)[:, :, group] for p in self._pieces]
        return torch.cat(found) if len(found) > 1 else found[0].contiguous()


def _factor(piece: Piece, part: slice, columns: bool) -> Tensor:
    """Return one factor [T, s, g, f] of some samples."""
    if isinstance(piece, Lookup):
        return piece.delta[part].transpose(0, 1)[:, :, None]
    assert isinstance(piece, Product)
    found = piece.column_factor(part) if columns else piece.row_factor(part)
    return found.unflatten(1, (piece.groups, -1)).permute(3, 0, 1, 2)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Return all inner products [T, n, T', m] of factors [T, n, f], or where ids are equal."""
    if x.dim() == 2:
        return x[:, :, None, None] == y
    return product(x.flatten(0, 1), y.flatten(0, 1)).view(*x.shape[:2], *y.shape[:2])


def batch_of(piece: Piece) -> int:
    """Return b."""
    if isinstance(piece, Product):
        return piece.batch
    return len(piece.ids if isinstance(piece, Lookup) else piece.values)


def _groups(piece: Piece) -> int:
    return piece.groups if isinstance(piece, Product) else 1


# ---- by gradients ------------------------------------------------------------------------------


def add_by_gradients(outputs: Outputs, sides: Sides, kernel: Tensor, workspace: int) -> None:
    """Add to a kernel [A, n, A, m] by making gradients, a slice of the parameter at a time.

    Args:
        workspace: bytes of gradients to hold.
    """
    a, summed = len(outputs), len(outputs[0])
    some_pieces = next(pieces for of_a in outputs for pieces in of_a if pieces)
    first = some_pieces[0]
    room = max(1, workspace // (kernel.element_size() * a * sides.batch))  # numbers of a sample
    unit = max(p.height // _groups(p) if _groups(p) > 1 else 1 for p in some_pieces)
    high = max(unit, room // first.width // unit * unit)
    together = max(1, min(summed, room // (min(high, first.height) * first.width)))
    for s in range(0, summed, together):
        some = [of_a[s : s + together] for of_a in outputs]
        for low in range(0, first.height, high):
            made = _gradients(
                some, some_pieces, low, min(low + high, first.height), sides.batch, workspace
            )
            add_gram(made, sides, kernel)


def _gradients(
    outputs: Outputs, some: Pieces, first: int, last: int, batch: int, workspace: int
) -> Tensor:
    """Return [A, b, S w] of some rows of the parameter's matrix.

    Args:
        some: pieces of an output that has them; of others the gradient may be zero.
    """
    piece = some[0]
    if len(outputs) * len(outputs[0]) * len(some) == 1 and isinstance(piece, Dense):
        return piece.gradient(slice(0, batch), first, last).flatten(1)[None]
    width = (last - first) * piece.width
    like = _floating(piece)
    shape = (len(outputs), batch, len(outputs[0]), width)
    made = torch.empty(shape, dtype=like.dtype, device=like.device)
    step = max(1, workspace // (4 * like.element_size() * _unfolded(some, width)))
    for i in range(0, batch, step):
        part = slice(i, min(i + step, batch))
        for a, of_a in enumerate(outputs):
            for s, pieces in enumerate(of_a):
                if not pieces:
                    made[a, part, s] = 0
                    continue
                total = pieces[0].gradient(part, first, last)
                for other in pieces[1:]:
                    total = total + other.gradient(part, first, last)
                made[a, part, s] = total.flatten(1)
    return made.flatten(2)


def add_gram(made: Tensor, sides: Sides, kernel: Tensor) -> None:
    """Add the inner products of gradients [A, b, w]."""
    a = len(made)
    rows = _STRIP if sides.symmetric else sides.left
    for i, j in sides.blocks(rows, sides.columns):
        x, y = made[:, i].flatten(0, 1), made[:, sides.of_right(j)].flatten(0, 1)
        found = product(x, y).view(a, i.stop - i.start, a, j.stop - j.start)
        kernel[:, i, :, j] += found


def _unfolded(pieces: Pieces, width: int) -> int:
    """Return numbers that making a sample's gradient holds: factors and a slice of it."""
    most = max(
        p.positions * (p.width * _groups(p) + p.height) if isinstance(p, Product) else 0
        for p in pieces
    )
    return most + 2 * width


def _floating(piece: Piece) -> Tensor:
    if isinstance(piece, Product):
        return piece.rows
    return piece.delta if isinstance(piece, Lookup) else piece.values


# ---- triangles ---------------------------------------------------------------------------------


def mirror(kernel: Tensor, copy_upper: Callable[[Tensor], None]) -> None:
    """Complete a symmetric kernel [A, n, A, n] of which the upper triangle is there.

    Args:
        copy_upper: copies the upper half of a square [n, n] to the lower one.
    """
    for a in range(len(kernel)):
        copy_upper(kernel[a, :, a])
        for b in range(a + 1, len(kernel)):
            left, right = kernel[a, :, b], kernel[b, :, a]
            upper, lower = torch.triu(left), torch.triu(right, 1)
            left.copy_(upper + lower.T)
            right.copy_(left.T)
