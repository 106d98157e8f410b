"""How alike two kernels of the same samples are: with each other, or with the labels.

Shapes: n samples; k, l numbers a row; c classes or targets; b rows of a block.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pntk.errors import ConfigError
from pntk.ntk.opening import as_source
from pntk.ntk.sources import RowKernel, Source, from_rows


def alignment(a: Any, b: Any) -> float:
    """Return A(K, L) = <K, L>_F / (|K|_F |L|_F), from 0 to 1 for kernels.

    Kernels are read in blocks. For rows Phi [n, k] and Psi [n, l], of which one is narrower than n,
    no n x n matrix is made: <K, L>_F = |Phi^T Psi|_F^2.

    Args:
        a: K: tensor or array [n, n]; a kernel on disk or its path; a FeatureStore or its path; or
            :func:`pntk.ntk.sources.from_rows` of rows [n, k].
        b: L, likewise, of the same samples in the same order.

    Raises:
        ConfigError: not symmetric kernels of as many samples, not finite, or a kernel of zeros.
        StoreError: a file cannot be read.

    Source: Cristianini, Shawe-Taylor, Elisseeff, Kandola (2001), On kernel-target alignment,
    definition 1, https://papers.nips.cc/paper/1946-on-kernel-target-alignment

    >>> round(alignment(torch.eye(4), torch.ones(4, 4)), 12)  # 4 / (2 * 4)
    0.5
    """
    return _cosine(*_pair(a, b), "")


def centered_alignment(a: Any, b: Any) -> float:
    """Return the alignment of H K H and H L H, where H = I - 1 1^T / n; 0 to 1 for kernels.

    It ignores what all entries of a kernel have in common, which otherwise hides the rest. For rows
    it is their linear CKA (centred kernel alignment).

    Args:
        a: K, as in :func:`alignment`.
        b: L, likewise.

    Raises:
        ConfigError: as in :func:`alignment`; also where nothing is left of a kernel.
        StoreError: a file cannot be read.

    Source: Cortes, Mohri, Rostamizadeh (2012), Algorithms for learning kernels based on centered
    alignment, definition 4, https://jmlr.org/papers/v13/cortes12a.html. Linear CKA: Kornblith,
    Norouzi, Lee, Hinton (2019), equation 5, https://arxiv.org/abs/1905.00414

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 3.0]])
    >>> round(centered_alignment(from_rows(rows), from_rows(7 - 2 * rows)), 12)
    1.0
    """
    first, second = _pair(a, b)
    return _cosine(first.centred(), second.centred(), " after centring")


def drift(a: Any, b: Any) -> float:
    """Return 1 - centered_alignment(K, L): 0 for a kernel that has only been scaled and shifted.

    Args:
        a: the kernel of one checkpoint, as in :func:`alignment`.
        b: that of another, made with the same projection.

    Source: Fort et al. (2020), Deep learning versus kernel learning, who do not centre,
    https://arxiv.org/abs/2010.15110

    >>> kernel = torch.tensor([[2.0, 1.0], [1.0, 5.0]])
    >>> round(drift(kernel, 3 * kernel + 10), 12)
    0.0
    """
    return 1.0 - centered_alignment(a, b)


def target_alignment(kernel: Any, targets: Any, *, centered: bool = False) -> float:
    """Return the alignment of a kernel with that of the targets, Y Y^T.

    Args:
        kernel: K [n, n], as in :func:`alignment`.
        targets: classes, integers [n], whose Y is one-hot: Y Y^T is 1 within a class and 0
            elsewhere; or Y itself, floating point [n] or [n, c].
        centered: whether to centre both kernels first.

    Raises:
        ConfigError: as in :func:`alignment`; targets of another shape, or negative classes.
        StoreError: a file cannot be read.

    Source: Cristianini et al. (2001), section 3, for targets of +1 and -1; Cortes et al. (2012).

    >>> labels = torch.tensor([0, 1, 0])
    >>> same = (labels[:, None] == labels).double()
    >>> round(target_alignment(same, labels), 12)
    1.0
    """
    source = as_source(kernel)
    ideal = target_kernel(targets, source.size)
    return centered_alignment(source, ideal) if centered else alignment(source, ideal)


def target_kernel(targets: Any, size: int) -> RowKernel:
    """Return Y Y^T of targets as in :func:`target_alignment`.

    Raises:
        ConfigError: not integers [n], or floating point [n] or [n, c]; negative classes.
    """
    given = torch.from_numpy(np.array(targets)) if isinstance(targets, np.ndarray) else targets
    given = torch.as_tensor(given).detach().cpu()
    if len(given.shape) not in (1, 2) or len(given) != size or given.numel() == 0:
        raise ConfigError(
            f"targets have shape {tuple(given.shape)}; expected [{size}] or [{size}, c], one for "
            "each sample of the kernel"
        )
    if given.is_floating_point():
        return from_rows(given if given.dim() == 2 else given[:, None])
    if given.dim() == 2:
        raise ConfigError(
            f"targets are {given.dtype} of shape {tuple(given.shape)}; expected classes [{size}], "
            "or floating point [n, c]: use .double()"
        )
    classes = given.long()
    if int(classes.min()) < 0:
        raise ConfigError(
            f"targets hold {int((classes < 0).sum())} negative classes, such as -1 for no label; "
            "expected 0 or more: leave those samples out of both"
        )
    # one column for each class that occurs, since numbers may be far apart
    numbers = classes.unique(return_inverse=True)[1]
    return from_rows(torch.nn.functional.one_hot(numbers).double())


# ---- private -----------------------------------------------------------------------------------


def _pair(a: Any, b: Any) -> tuple[Source, Source]:
    first, second = as_source(a, "the first kernel"), as_source(b, "the second kernel")
    if first.size != second.size:
        raise ConfigError(
            f"kernels are of {first.size:,} and {second.size:,} samples; expected the same samples "
            "in both"
        )
    return first, second


def _cosine(a: Source, b: Source, when: str) -> float:
    """Cosine of two kernels as vectors of n^2 numbers."""
    if isinstance(a, RowKernel) and isinstance(b, RowKernel) and min(a.width, b.width) < a.size:
        inner = float(a.product(b).square().sum())
        squares = [float(source.gram().square().sum()) for source in (a, b)]
    else:
        inner, squares = _in_blocks(a, b)
    if not all(map(math.isfinite, (inner, *squares))):
        for source in (a, b):
            source.traces()  # names the row
        raise ConfigError("kernels are too large for float64; expected norms below 1e150: scale")
    norms = [math.sqrt(square) for square in squares]
    for source, norm, name in zip((a, b), norms, ("first", "second"), strict=True):
        if norm <= source.zero:
            raise ConfigError(
                f"the {name} kernel is zero{when}, and its alignment undefined; expected samples "
                "that differ from each other, and targets of more than one value"
            )
    return min(1.0, max(-1.0, inner / norms[0] / norms[1]))  # rounding may pass them


def _in_blocks(a: Source, b: Source) -> tuple[float, list[float]]:
    """<K, L>_F and both |.|_F^2, from one pass over both."""
    inner, squares = 0.0, [0.0, 0.0]
    for start in range(0, a.size, step := min(a.step, b.step)):
        stop = min(start + step, a.size)
        left, right = a.block(start, stop), b.block(start, stop)
        inner += float((left * right).sum())
        squares[0] += float(left.square().sum())
        squares[1] += float(right.square().sum())
    return inner, squares
