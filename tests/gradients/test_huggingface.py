"""Tiny random Hugging Face models, dict batches, against a loop of torch.autograd.grad."""

import warnings

import pytest
import torch

from pntk import Featurizer
from pntk.errors import PntkWarning

transformers = pytest.importorskip("transformers", reason="needs transformers, pntk[text]")

IDS = torch.tensor([[1, 5, 9, 2, 0], [3, 3, 4, 8, 7], [6, 1, 2, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
LABELS = torch.tensor([0, 2, 1])
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 11}
DROPOUTS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert():
    config = transformers.BertConfig(
        **SMALL, **DROPOUTS, intermediate_size=12, max_position_embeddings=16, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=16)
    config.pad_token_id, config.num_labels = 0, 3
    return transformers.GPT2ForSequenceClassification(config)


def llama():
    config = transformers.LlamaConfig(
        **SMALL, intermediate_size=12, num_key_value_heads=1, num_labels=3, pad_token_id=0
    )
    return transformers.LlamaForSequenceClassification(config)


def prepared(make):
    torch.manual_seed(0)
    model = make().double().eval()
    model.config.use_cache = False
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.4)
    return model


@pytest.mark.filterwarnings("ignore")  # of other people's code
@pytest.mark.parametrize("output", ["text", "trace"])
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_sequence_classifiers(loop_rows, distance, make, output):
    model = prepared(make)
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    found = Featurizer(model, output, "identity")(batch)
    assert distance(found, loop_rows(model, batch, output)) <= 1e-9


@pytest.mark.filterwarnings("ignore")
def test_language_model_with_a_tied_head(loop_rows, distance):
    def last_logits(model, batch):
        return model(input_ids=batch["input_ids"]).logits[:, -1, :4]

    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=16)
    model = prepared(lambda: transformers.GPT2LMHeadModel(config))
    featurizer = Featurizer(model, last_logits, "identity")
    found = featurizer({"input_ids": IDS})
    assert distance(found, loop_rows(model, {"input_ids": IDS}, last_logits)) <= 1e-9
    rules = {row["name"]: row["rule"] for row in featurizer.coverage()}
    assert rules["transformer.wte.weight"] == "embedding + linear"
    assert rules["transformer.wpe.weight"] == "embedding"
    assert rules["transformer.h.0.attn.c_attn.weight"] == "transposed linear"
    assert featurizer.coverage().by_rule == 1


@pytest.mark.filterwarnings("ignore")
def test_batch_encoding_is_a_batch(distance):
    model = prepared(bert)
    fields = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    encoded = transformers.BatchEncoding(fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PntkWarning)
        plain, found = (Featurizer(model, "text", proj_dim=64)(b) for b in (fields, encoded))
    assert torch.equal(plain, found)


def test_conv1d_is_served_by_a_rule(loop_rows, distance):
    model = transformers.pytorch_utils.Conv1D(4, 5).double()
    torch.nn.init.normal_(model.bias)
    batch = torch.randn(3, 6, 5).double()

    def output(model, batch):
        return torch.tanh(model(batch)).sum(1)

    featurizer = Featurizer(model, output, "identity")
    assert distance(featurizer(batch), loop_rows(model, batch, output)) <= 1e-10
    assert {row["rule"] for row in featurizer.coverage()} == {"transposed linear"}
