import pytest
import torch
from torch import nn

from pntk.embedding import embedding_gram, embeddings
from pntk.errors import ConfigError, ModelError


class Net(nn.Module):
    """Layers are called in another order than they are defined; one works in place."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3)
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(torch.relu_(self.norm(self.conv(x))).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images():
    return torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def by_hand(net, x):
    conv = net.conv(x)
    norm = net.norm(conv)
    last = norm.relu().flatten(1)
    return [conv.flatten(1), norm.flatten(1), net.head(last)], last


def test_last_is_what_the_last_linear_layer_gets(net, images):
    labels = torch.arange(10)
    found = embeddings(net, (images, labels), batch_size=4)
    torch.testing.assert_close(found, by_hand(net, images)[1])


def test_all_layers_in_the_order_of_calls(net, images):
    layers, _ = by_hand(net, images)
    torch.testing.assert_close(embeddings(net, images, "all"), torch.cat(layers, 1))
    named = embeddings(net, images, layers=["head", "conv"])
    torch.testing.assert_close(
        named,
        torch.cat([layers[2], layers[0]], 1).index_select(
            1, torch.tensor([*range(3, 15), *range(3)])
        ),
    )
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("which", ["last", "all"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("batches", [2, 3, 100])
def test_gram_is_that_of_the_rows(net, images, which, normalize, batches):
    rows = embeddings(net, images, which)
    budget = batches * 3 * rows.shape[1] * 4
    found = embedding_gram(
        net, images, which, normalize=normalize, batch_size=3, memory_budget=budget
    )
    rows = rows.double()
    rows = rows / rows.norm(dim=1, keepdim=True) if normalize else rows
    torch.testing.assert_close(found, rows @ rows.T, rtol=1e-5, atol=1e-6)
    assert torch.equal(found, found.T)


def test_refusals(net, images):
    with pytest.raises(ConfigError, match="which is 'some'; expected 'last' or 'all'"):
        embeddings(net, images, "some")
    with pytest.raises(ConfigError, match=r"layers are \['tail'\]; expected names of modules, su"):
        embeddings(net, images, layers=["tail"])
    with pytest.raises(ConfigError, match="memory_budget is 500 bytes and two batches of 3 sampl"):
        embedding_gram(net, images, batch_size=3, memory_budget=500)
    with pytest.raises(ModelError, match="in train mode; expected eval mode"):
        embeddings(net.train(), images)
    with pytest.raises(ModelError, match="Sequential calls no Linear layer; name modules"):
        embeddings(nn.Sequential(nn.Flatten()).eval(), images)
    folded = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 8)), nn.Linear(8, 2)).eval()
    with pytest.raises(ModelError, match=r"2 has \(4, 8\) for a batch of 2; expected a tensor"):
        embeddings(folded, images)
