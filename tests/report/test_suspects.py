import numpy as np
import pytest

from pntk.report.suspects import weighted_vote


@pytest.mark.parametrize(
    ("own", "labels", "similarities", "suggested", "margin"),
    [
        (0, [1, 1, 0], [0.5, 0.25, 0.25], 1, 0.5),
        (0, [0, 0, 1], [0.5, 0.25, 0.25], 1, -0.5),
        (0, [1, 2, 2], [0.6, 0.2, 0.2], 1, 0.6),  # weight counts, not number
        (0, [1, 0, 0], [0.5, -0.9, 0.5], 1, 0.0),  # what is negative has no vote
        (0, [1, -1, -1], [0.2, 0.9, 0.9], 1, 1.0),  # nor has what has no label
        (5, [1, 1, 1], [0.0, 0.0, 0.0], 1, 0.0),
    ],
)
def test_votes_are_weighed(own, labels, similarities, suggested, margin):
    vote = weighted_vote(np.array([own]), np.array([labels]), np.array([similarities]))
    assert vote.suggested.tolist() == [suggested]
    np.testing.assert_allclose(vote.margin, [margin], atol=1e-12)
