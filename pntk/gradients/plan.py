"""Decide, for each parameter, how its per-sample gradients are made.

A parameter goes by rules when every module that owns it is served by one. All others go to the
fallback, each with its reason. ``probe`` then finds where the samples lie.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pntk.errors import ConfigError
from pntk.gradients.hooks import Use
from pntk.gradients.rules import find_rule, refuse
from pntk.naming import canonical


@dataclass
class Plan:
    """Who serves each parameter.

    Attributes:
        params: canonical name -> parameter, those to featurize, in the model's order.
        uses: module name -> how its rule serves it.
        fallback: canonical parameter name -> why no rule serves it.
        outputs: c, the number of differentiated outputs; 0 before the probe.
        sample_bytes: estimate of what one sample's forward and backward hold; 0 before the probe.
        reweights: whether the output gives a reweighting Q.
        channels_last: whether images go through the model in channels-last memory order.
    """

    params: dict[str, nn.Parameter]
    uses: dict[str, Use]
    fallback: dict[str, str]
    outputs: int = 0
    sample_bytes: int = 0
    reweights: bool = False
    channels_last: bool = False

    def drop(self, names: Iterable[str], reason: str) -> None:
        """Move parameters from their rules to the fallback."""
        for name in names:
            self.fallback.setdefault(name, reason)
        for use in list(self.uses.values()):
            use.params = {k: name for k, name in use.params.items() if name not in self.fallback}
            if not use.params:
                del self.uses[use.name]

    def coverage(self) -> list[dict[str, Any]]:
        """Return a row a parameter: name, shape, count, rule, module (or why there is no rule)."""
        rows = []
        for name, p in self.params.items():
            uses = [use for use in self.uses.values() if name in use.params.values()]
            rules = sorted({use.rule.name for use in uses})
            rows.append(
                {
                    "name": name,
                    "shape": tuple(p.shape),
                    "count": p.numel(),
                    "rule": " + ".join(rules) if rules else "torch.func",
                    "module": ", ".join(use.name or "(model)" for use in uses)
                    or self.fallback[name],
                }
            )
        return rows


def make_plan(
    model: nn.Module, params: dict[str, nn.Parameter], forced: Sequence[str] = ()
) -> Plan:
    """Return the plan that the model's structure allows.

    Args:
        model: an unwrapped module.
        params: canonical name -> parameter, those to featurize.
        forced: globs of parameters that go to the fallback whatever rules there are.

    Raises:
        ModelError: a layer mixes samples or is random in its present mode.
        ConfigError: a forced glob matches no selected parameter.
    """
    name_of = {id(p): name for name, p in params.items()}
    attention = {
        id(child)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
    }
    plan = Plan(params, {}, _forced(params, forced))
    for raw_name, module in model.named_modules():
        name = canonical(raw_name)
        refuse(module, name)
        own = {
            key: name_of[id(p)]
            for key, p in module._parameters.items()
            if p is not None and id(p) in name_of
        }
        rule = None if id(module) in attention else find_rule(module)
        served = {key: p for key, p in own.items() if rule and key in ("weight", "bias")}
        for key in set(own) - set(served):
            plan.fallback.setdefault(own[key], f"{key} of {type(module).__name__} {name}".strip())
        if rule and served:
            plan.uses[name] = Use(name, module, rule, served)
    plan.drop((), "")  # a parameter that one of its owners leaves to the fallback goes there whole
    return plan


def _forced(params: dict[str, nn.Parameter], globs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pattern in globs:
        matches = fnmatch.filter(params, pattern)
        if not matches:
            raise ConfigError(
                f"fallback glob {pattern!r} matches no selected parameter; names look like "
                f"{next(iter(params))!r}"
            )
        found.update(dict.fromkeys(matches, "asked for"))
    return found
