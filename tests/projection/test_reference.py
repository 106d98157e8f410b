"""The matrices themselves: known values, so that the map never changes unnoticed."""

import math

import numpy as np
import pytest

from pntk.projection import ProjectionSpec
from pntk.projection.quantiles import NORMAL_MEAN_SQUARE
from pntk.projection.reference import hadamard_matrix, projection_matrix

# sqrt(k) times the row (sqrt(k * NORMAL_MEAN_SQUARE) times for ``normal``) of the gradient
# 0, 1, ..., n - 1 minus n // 2 of parameter block.0.weight, seed 0: (family, k, shape, output).
KNOWN_ROWS = {
    ("hadamard", 8, (5, 3), 0): "-10 8 -6 0 2 14 0 -54",
    ("hadamard", 8, (2, 5, 1, 2), 1): "2 36 28 0 26 2 -2 -14",
    ("hadamard", 8, (11,), 0): "-6 10 -8 -24 -14 6 4 4",
    ("hadamard", 64, (5, 3), 0): """
        18 -6 12 -36 18 6 -12 36 10 -14 12 36 10 14 -12 -36 -4 8 6 18 4 -8 6 18 16 20 18 54
        16 20 18 54 -2 2 0 0 -2 -2 0 0 -6 6 0 0 -6 -6 0 0 12 0 6 18 -12 0 -6 18 0 12 6 -18 0
        -12 6 -18
    """,
    ("hadamard", 128, (9, 20), 0): """
        190 1202 108 -64 -158 418 808 404 338 194 116 88 1246 2 448 84 182 1202 684 396 -174
        -418 16 -116 -1246 -438 464 -80 -1230 -2 132 -396 206 1674 216 -572 -474 1194 1324
        -236 1566 -446 -524 -236 -1590 -638 524 556 -206 1202 684 -68 434 -2006 856 108
        -1222 -438 -8 -88 1246 -2 -1164 92 -146 -242 -456 -272 122 -406 -772 -200 254 126
        -64 -72 -302 54 -84 96 -450 1202 -688 -68 -174 -2006 -1492 108 -346 438 784 -92 -330
        374 -4 -88 38 706 40 -280 218 -1158 -220 128 470 26 -520 228 -486 -422 -152 -92 -586
        -726 -492 -560 594 1218 -492 -276 818 598 992 -568 -810 534 216 564
    """,
    ("hadamard", 128, (9, 9, 2), 1): """
        -1787 13 261 -243 -1047 101 -87 -85 -629 133 -119 339 -903 -1425 339 -87 -1129 675
        -189 201 1097 797 189 193 -1493 -39 -193 345 783 -201 -169 -171 -517 453 87 -477 611
        -475 303 119 625 1185 -237 -85 -1785 437 -271 -261 347 1001 -171 -189 719 -797 171
        345 815 255 345 -169 -39 643 345 -27 479 -541 -45 87 355 529 -261 7 209 -465 -81
        -115 -35 -605 325 -129 801 1787 -57 -99 753 -871 -261 55 1709 609 -417 -99 561 -561
        417 -243 -413 -465 177 321 381 573 -249 55 -621 -941 -197 -115 -581 203 121 -321
        -125 -201 -201 57 579 -567 -117 53 -1485 -33 99 417 1837 643 99 -273
    """,
    ("rademacher", 8, (5, 3), 0): "-12 10 2 0 -6 26 -16 -2",
    ("rademacher", 8, (2, 5, 1, 2), 1): "-26 -50 0 52 42 -2 -8 -10",
    ("rademacher", 8, (11,), 0): "4 12 18 12 -12 8 -6 -4",
    ("rademacher", 64, (5, 3), 0): """
        4 -2 -14 6 -4 -24 -20 -10 -40 -6 0 -6 14 30 -10 -32 36 -4 8 -4 -12 28 -18 4 0 -36 -6
        28 -6 -10 -12 14 28 -6 8 -20 4 8 0 -2 22 8 -10 12 6 -6 6 0 4 -4 18 -24 -8 -18 28 14
        -6 24 0 16 -8 10 14 4
    """,
    ("normal", 8, (5, 3), 0): "-436 1802 -1298 1536 -267 -1224 -2327 -362",
    ("normal", 8, (2, 5, 1, 2), 1): "543 1832 -1753 -3992 1314 -3053 570 -2647",
    ("normal", 8, (11,), 0): "968 548 -1154 958 -392 229 -1644 -116",
    ("normal", 64, (5, 3), 0): """
        -779 260 -59 -2068 -1496 -1110 -601 -160 310 -252 837 -1562 -1411 -1360 -1878 -673
        -4483 386 1588 -2634 477 -1290 2257 1507 846 -70 185 -607 -81 -132 2296 1069 961 280
        771 -3500 222 627 355 252 292 -951 390 -2779 2624 -794 1492 411 -632 1319 1233 -486
        -352 996 1035 -565 -620 -1968 -1531 -311 -120 179 -558 -2773
    """,
}


@pytest.mark.parametrize("key", KNOWN_ROWS, ids=str)
def test_known_rows(key):
    family, k, shape, output = key
    gradient = np.arange(math.prod(shape)) - math.prod(shape) // 2
    row = projection_matrix(ProjectionSpec(family, k), "block.0.weight", shape, output) @ gradient
    scaled = row * math.sqrt(k * (NORMAL_MEAN_SQUARE if family == "normal" else 1))
    expected = [int(number) for number in KNOWN_ROWS[key].split()]
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 8, 32])
def test_hadamard_matrix_is_orthonormal_and_symmetric(order):
    h = hadamard_matrix(order)
    np.testing.assert_allclose(h @ h, np.eye(order), atol=1e-14)
    assert np.array_equal(h, h.T) and (h[0] > 0).all()


@pytest.mark.parametrize("k", [8, 64, 128])
def test_entries_of_hadamard_are_signs(k):
    matrix = projection_matrix(ProjectionSpec("hadamard", k), "w", (20, 9, 2))
    np.testing.assert_allclose(np.abs(matrix), 1 / math.sqrt(k), rtol=1e-12)


def test_identity_is_the_identity():
    matrix = projection_matrix(ProjectionSpec("identity"), "w", (2, 3))
    assert np.array_equal(matrix, np.eye(6))


@pytest.mark.parametrize("family", ["hadamard", "rademacher", "normal"])
def test_names_and_outputs_have_maps_of_their_own(family):
    spec = ProjectionSpec(family, 64)
    base, name, output = (
        projection_matrix(spec, *rest)
        for rest in (("w", (16, 16)), ("v", (16, 16)), ("w", (16, 16), 1))
    )
    for other in (name, output):
        correlation = np.corrcoef(base.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 0.05
