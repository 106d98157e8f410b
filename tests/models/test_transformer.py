import pytest
import torch

from pntk.errors import ConfigError
from pntk.models.transformer import SelfAttention


@pytest.mark.parametrize("causal", [False, True])
def test_attention_matches_the_formula(causal):
    torch.manual_seed(0)
    attention = SelfAttention(dim=6, heads=2, causal=causal).double()
    x = torch.randn(1, 5, 6, dtype=torch.double)
    query, key, value = attention.qkv(x)[0].split(6, dim=-1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        scores = query[:, part] @ key[:, part].T / 3**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ value[:, part])
    torch.testing.assert_close(attention(x)[0], attention.out(torch.cat(heads, dim=-1)))


def test_refuses_heads_that_do_not_divide():
    with pytest.raises(ConfigError, match=r"dim is 10 and heads is 4.*use dim=12"):
        SelfAttention(dim=10, heads=4, causal=False)
