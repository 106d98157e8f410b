"""What is differentiated: one number a sample, or one a class.

f_c(x) is logit c of sample x. An output turns a model and a batch into values [b] or [b, c], each
row of which may depend on its own sample only.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pntk.batch import split
from pntk.describe import describe
from pntk.errors import ConfigError, DataError, OutputError
from pntk.logits import Model, at_least_float32, class_labels, logits_of, tensor_of
from pntk.projection.bits import signs, stream_id


@dataclass(frozen=True)
class Values:
    """What an output returns for a batch.

    Attributes:
        values: [b], or [b, c] whose columns get independent sketches.
        labels: int64 [b], or None.
        reweighting: TRAK's Q, float [b], or None.
    """

    values: Tensor
    labels: Tensor | None = None
    reweighting: Tensor | None = None


def joined(pieces: list[Values]) -> Values:
    """Return the values of a batch that went through in pieces."""

    def cat(parts: list[Tensor | None]) -> Tensor | None:
        found = [part for part in parts if part is not None]
        return torch.cat(found) if found else None

    values = torch.cat([piece.values for piece in pieces])
    return Values(values, cat([p.labels for p in pieces]), cat([p.reweighting for p in pieces]))


class Output(ABC):
    """Base class of outputs; ``describe`` goes into the store and must tell outputs apart."""

    name = "output"

    @abstractmethod
    def __call__(self, model: Model, batch: Any) -> Values:
        """Return the values of a batch."""

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that identify the output."""
        return {"name": self.name}


@dataclass(frozen=True)
class PNTK(Output):
    """sum_c f_c, so that K = <J_sum(x), J_sum(x')>.

    Source: Mohamadi, Bae, Sutherland (2023), https://arxiv.org/abs/2206.12543
    """

    name = "pntk"

    def __call__(self, model: Model, batch: Any) -> Values:
        logits, labels = logits_of(model, batch)
        return Values(logits.sum(1), labels)


@dataclass(frozen=True)
class Trace(Output):
    """Each f_c, so that K = sum_c <J_c(x), J_c(x')>; one row sums an independent sketch a class.

    Args:
        probes: 0 for every class; otherwise that many random-sign combinations of classes,
            v_m = sum_c eps_mc f_c / sqrt(probes), whose kernel has the same expectation.
        seed: of the signs.

    Source: Engel et al. (2023), https://arxiv.org/abs/2305.14585
    """

    probes: int = 0
    seed: int = 0
    name = "trace"

    def __post_init__(self) -> None:
        if not isinstance(self.probes, int) or self.probes < 0:
            raise ConfigError(f"probes is {self.probes!r}; expected an integer, 0 for every class")

    def __call__(self, model: Model, batch: Any) -> Values:
        logits, labels = logits_of(model, batch)
        if not self.probes:
            return Values(logits, labels)
        eps = _probe_signs(
            self.seed, self.probes, logits.shape[1], dtype=logits.dtype, device=logits.device
        )
        with torch.autocast(logits.device.type, enabled=False):  # it would round the logits again
            return Values(logits @ eps / self.probes**0.5, labels)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "probes": self.probes, "seed": self.seed}


@functools.lru_cache(maxsize=8)  # also because vmap cannot make them
def _probe_signs(
    seed: int, probes: int, classes: int, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return eps [classes, probes]."""
    stream = stream_id("trace", probes, "probes", classes, "")
    eps = signs(seed, stream, 0, classes * probes, dtype=dtype, device=device)
    return eps.view(classes, probes)


def _margin(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[1] < 2:
        raise OutputError(
            "margin needs at least two classes and the model has one logit; use output='pntk'"
        )
    correct = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], float("-inf"))
    reweighting = 1 - torch.softmax(logits.detach(), dim=1).gather(1, labels[:, None])[:, 0]
    return correct - torch.logsumexp(others, dim=1), reweighting


@dataclass(frozen=True)
class Margin(Output):
    """f_y - logsumexp_{j != y} f_j, with Q = 1 - p_y.

    Source: Park et al. (2023), TRAK, https://arxiv.org/abs/2303.14186
    """

    name = "margin"

    def __call__(self, model: Model, batch: Any) -> Values:
        logits, labels = logits_of(model, batch)
        labels = class_labels(labels, logits, self.name)
        values, reweighting = _margin(logits, labels)
        return Values(values, labels, reweighting)


@dataclass(frozen=True)
class Text(Margin):
    """The margin of a Hugging Face sequence classifier; the batch is a mapping with labels."""

    name = "text"

    def __call__(self, model: Model, batch: Any) -> Values:
        if not isinstance(batch, Mapping):
            raise DataError(
                f"output 'text' got a {type(batch).__name__}; expected a mapping with input_ids, "
                "attention_mask and labels, passed to the model by keyword"
            )
        return super().__call__(model, batch)


@dataclass(frozen=True)
class Loss(Output):
    """The loss of each sample.

    Args:
        criterion: ``(logits, labels) -> loss``, a module or a function; a module's ``reduction``
            is set to ``none`` and further axes are summed, or averaged over what is not ignored,
            as it asks. Class weights multiply. Cross entropy when left out.
    """

    criterion: Callable[[Any, Tensor], Tensor] = field(default_factory=nn.CrossEntropyLoss)
    name = "loss"

    def __post_init__(self) -> None:
        if not callable(self.criterion):
            raise ConfigError(
                f"criterion is {self.criterion!r}; expected a callable (logits, labels) -> loss"
            )

    def __call__(self, model: Model, batch: Any) -> Values:
        args, kwargs, labels = split(batch)
        if labels is None:
            raise DataError(
                "output 'loss' needs labels and the batch has none; pass (inputs, labels), or a "
                "dict with 'labels'"
            )
        result = tensor_of(model(*args, **kwargs))
        soft = isinstance(labels, Tensor) and labels.shape == result.shape  # probabilities
        if isinstance(self.criterion, nn.CrossEntropyLoss) and result.dim() == 2 and not soft:
            labels = class_labels(labels, result, self.name, self.criterion.ignore_index)
        criterion = self.criterion
        reduction = getattr(criterion, "reduction", None)
        if isinstance(criterion, nn.Module) and reduction is not None:
            criterion = copy.copy(criterion)
            criterion.reduction = "none"  # type: ignore[assignment]  # a plain attribute
        loss = criterion(result, labels)
        if not isinstance(loss, Tensor) or loss.dim() == 0 or loss.shape[0] != result.shape[0]:
            seen = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise OutputError(
                f"the criterion returned {seen} for {result.shape[0]} samples; expected one loss a "
                "sample: use reduction='none'"
            )
        values = loss.reshape(len(loss), -1).sum(1)
        if reduction == "mean":
            counted = torch.ones_like(loss)
            ignored = getattr(criterion, "ignore_index", None)
            if ignored is not None and labels.shape == loss.shape:
                counted = (labels != ignored).to(loss.dtype)
            values = values / counted.reshape(len(loss), -1).sum(1).clamp(min=1)
        return Values(values, labels if labels.dim() == 1 else None)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "criterion": describe(self.criterion)}


class Clip(Output):
    """Contrastive image-text output against B fixed pairs.

    -logsumexp(-I (T - T_B)^T) - logsumexp(-T (I - I_B)^T), I and T the sample's embeddings.

    Args:
        image_embeddings, text_embeddings: [n, d], the embeddings to draw pairs from.
        pairs: B.
        seed: of the draw, which is the same for every sample and batch.
        embed: ``(model, batch) -> (image [b, d], text [b, d])``; by default the model is called on
            the batch and returns the two first, or ``.image_embeds`` and ``.text_embeds``.

    Source: Park et al. (2023), TRAK, https://arxiv.org/abs/2303.14186
    """

    name = "clip"

    def __init__(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        pairs: int = 300,
        seed: int = 0,
        embed: Callable[[Any, Any], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        shape = tuple(image_embeddings.shape)
        if image_embeddings.dim() != 2 or shape != tuple(text_embeddings.shape):
            raise ConfigError(
                f"embeddings have shapes {shape} and {tuple(text_embeddings.shape)}; expected "
                "[n, d] twice"
            )
        if not 1 <= pairs <= shape[0]:
            raise ConfigError(f"pairs is {pairs}; expected 1 to {shape[0]}, the embeddings given")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(shape[0], generator=generator)[:pairs]
        self.images = image_embeddings.detach()[chosen.to(image_embeddings.device)]
        self.texts = text_embeddings.detach()[chosen.to(text_embeddings.device)]
        self.pairs, self.seed, self.embed = pairs, seed, embed
        self._moved: dict[Any, tuple[Tensor, Tensor]] = {}

    def __call__(self, model: Model, batch: Any) -> Values:
        image, text = (at_least_float32(e) for e in self._embeddings(model, batch))
        images, texts = self._pairs_like(image, text)
        # I (T - T_b)^T = <I, T> - <I, T_b>, whose difference autocast would round away
        with torch.autocast(image.device.type, enabled=False):
            own = (image * text).sum(1, keepdim=True)
            values = -torch.logsumexp(image @ texts.T - own, dim=1)
            values = values - torch.logsumexp(text @ images.T - own, dim=1)
        return Values(values)

    def _pairs_like(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pairs where the batch is; each copy to a GPU would wait for it."""
        key = (image.device, image.dtype, text.dtype)
        if key not in self._moved:
            self._moved = {key: (self.images.to(image), self.texts.to(text))}
        return self._moved[key]

    def _embeddings(self, model: Model, batch: Any) -> tuple[Tensor, Tensor]:
        if self.embed is not None:
            found: Any = self.embed(model, batch)
        elif isinstance(batch, Mapping):
            found = model(**batch)
        else:
            found = model(*batch)
        if hasattr(found, "image_embeds"):
            found = (found.image_embeds, found.text_embeds)
        if not isinstance(found, (tuple, list)) or len(found) < 2:
            raise OutputError(
                f"output 'clip' got a {type(found).__name__} from the model; expected (image "
                "embeddings, text embeddings): pass embed=callable(model, batch)"
            )
        image, text = found[0], found[1]
        wanted = self.images.shape[1]
        for what, value in (("image", image), ("text", text)):
            if value.dim() != 2 or value.shape[1] != wanted:
                raise OutputError(
                    f"{what} embeddings have shape {tuple(value.shape)}; expected [b, {wanted}]"
                )
        return image, text

    def describe(self) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=8)
        for chosen in (self.images, self.texts):
            digest.update(chosen.float().cpu().numpy().tobytes())
        return {
            "name": self.name,
            "pairs": self.pairs,
            "seed": self.seed,
            "embeddings": digest.hexdigest(),
        }


class Custom(Output):
    """A callable ``(model, batch) -> [b]`` or ``[b, c]``.

    Modules of its own, beside the model, should not require gradients: a backward pass would leave
    them in their ``grad``.
    """

    name = "custom"

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def __call__(self, model: Model, batch: Any) -> Values:
        result = self.function(model, batch)
        if isinstance(result, Values):
            return result
        if not isinstance(result, Tensor) or result.dim() not in (1, 2):
            seen = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise OutputError(
                f"the output callable returned {seen}; expected a tensor [b] or [b, c]"
            )
        return Values(result, _labels_if_any(batch))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "callable": describe(self.function)}


def _labels_if_any(batch: Any) -> Tensor | None:
    labels = split(batch)[2]
    return labels if isinstance(labels, Tensor) and labels.dim() == 1 else None


OUTPUTS: dict[str, Callable[[], Output]] = {
    "pntk": PNTK,
    "trace": Trace,
    "margin": Margin,
    "loss": Loss,
    "text": Text,
}


def resolve_output(output: str | Output | Callable[[Any, Any], Any]) -> Output:
    """Return the output that a name, an object or a callable stands for.

    Raises:
        ConfigError: the name is unknown, or it needs arguments.
    """
    if isinstance(output, Output):
        return output
    if isinstance(output, nn.Module) or (isinstance(output, type) and issubclass(output, Output)):
        raise ConfigError(
            f"output is {output!r}; expected a name, an object of pntk.outputs, or a function of "
            "(model, batch): a criterion goes into pntk.outputs.Loss(criterion)"
        )
    if callable(output):
        return Custom(output)
    if output == "clip":
        raise ConfigError(
            "output 'clip' needs embeddings to contrast with; pass "
            "pntk.outputs.Clip(image_embeddings, text_embeddings)"
        )
    if not isinstance(output, str) or output not in OUTPUTS:
        raise ConfigError(
            f"unknown output {output!r}; expected one of {', '.join(OUTPUTS)}, clip, or a callable "
            "(model, batch) -> [b] or [b, c]"
        )
    return OUTPUTS[output]()


def check_values(found: Values, batch: int) -> Tensor:
    """Return the values as [b, c] after checking shape and type.

    Raises:
        OutputError: not one row a sample, not floating point, or no graph behind it.
    """
    values = found.values
    if not isinstance(values, Tensor):
        raise OutputError(
            f"the output's values are a {type(values).__name__}; expected a tensor [b] or [b, c]"
        )
    q = found.reweighting
    if q is not None and (not isinstance(q, Tensor) or tuple(q.shape) != (batch,)):
        raise OutputError(f"the output's reweighting is not a tensor [{batch}], one a sample")
    if values.dim() not in (1, 2) or values.shape[0] != batch:
        raise OutputError(
            f"the output has shape {tuple(values.shape)} for a batch of {batch}; expected "
            f"[{batch}] or [{batch}, c]"
        )
    if not values.is_floating_point():
        raise OutputError(f"the output is {values.dtype}; expected floating point")
    if values.dim() == 2 and values.shape[1] == 0:
        raise OutputError("the output has no columns; expected [b] or [b, c] with c of at least 1")
    return values if values.dim() == 2 else values[:, None]


__all__ = [
    "PNTK",
    "Clip",
    "Custom",
    "Loss",
    "Margin",
    "Output",
    "Text",
    "Trace",
    "Values",
]
