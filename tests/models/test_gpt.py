import pytest
import torch

from pntk.errors import DataError
from pntk.models import GPT


def make(**options):
    torch.manual_seed(0)
    return GPT(vocab_size=11, context=8, dim=16, depth=2, heads=2, **options)


@pytest.mark.parametrize("length", [1, 5, 8])
def test_shape(length):
    assert make()(torch.randint(11, (3, length))).shape == (3, length, 11)


def test_tied_weights_are_one_parameter():
    tied, untied = make(), make(tie_weights=False)
    assert tied.head.weight is tied.tok_emb.weight
    assert untied.head.weight is not untied.tok_emb.weight
    counts = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert counts[1] - counts[0] == 11 * 16


def test_a_token_changes_no_earlier_prediction():
    model = make()
    ids = torch.randint(11, (1, 8))
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 11
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-6)


def test_refuses_a_sequence_beyond_the_context():
    with pytest.raises(DataError, match="has 9 tokens, but the context is 8: cut it to 8, or"):
        make()(torch.zeros(1, 9, dtype=torch.long))
