"""Find where the samples lie in each layer's tensors, by two small forward passes.

Run on two and on three samples, the axis that grows by half holds the samples. (Not on one: models
that squeeze their tensors treat a batch of one in a way of its own.) A layer whose shapes do not
change sees no samples (position ids, say): its result is expanded over the batch so that each
sample has a gradient of its own, provided that the model's output stays the same.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from pntk.batch import batch_size, channels_last, repeat_first, take, tensors, tree_map
from pntk.errors import ModelError, is_out_of_memory
from pntk.gradients.hooks import Use, layout_of, quiet, tapped
from pntk.gradients.plan import Plan
from pntk.outputs import Output, check_values
from pntk.precision import arithmetic

MAX_ROUNDS = 10
# input channels from which convolutions on a CPU gain from channels-last order: ResNet18 takes 0.8
# times as long; LeNet, of 1 and 6 channels, up to 1.4 times
MANY_CHANNELS = 16
# arithmetic of a GPU's tensor cores, whose convolutions want channels last; float32 ones do not
TENSOR_CORES = ("half", "tf32")
SAME = {"fp64": 1e-4, "fp32": 1e-4, "tf32": 1e-2, "half": 1e-2}
# what a module's result costs: itself, what autograd keeps of it, and its gradient
COPIES = 3

Shapes = dict[str, list[torch.Size]]


def probe(plan: Plan, model: nn.Module, output: Output, batch: Any) -> None:
    """Complete a plan for batches like this one.

    Raises:
        ModelError: the forward pass draws random numbers.
        OutputError, DataError: the output does not take the batch.
    """
    three = take(batch, slice(0, 3)) if batch_size(batch) > 2 else repeat_first(batch, 3)
    two = take(three, slice(0, 2))
    device = next(iter(plan.params.values())).device
    with quiet(model), torch.no_grad(), warnings.catch_warnings():
        # a reentrant checkpoint says that it has no gradients; here nothing has
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        plain = _plain_values(plan, model, output, two)
        plan.outputs = plain.shape[1]
        plan.sample_bytes = _activation_bytes(model, output, two) // 2
        gains = _gains_by_channels_last(model, device, arithmetic(model, output))
        plan.channels_last = gains and _takes_channels_last(model, output, two, plain)
        for _ in range(MAX_ROUNDS):
            for_two, _ = _watch(plan, model, output, two, 2)
            for_three, _ = _watch(plan, model, output, three, 3)
            newly_shared = [
                use
                for use in list(plan.uses.values())
                if _settle(plan, use, for_two.get(use.name, []), for_three.get(use.name, []))
            ]
            if not newly_shared:
                return
            if not _expansion_is_harmless(plan, model, output, two, plain):
                for use in newly_shared:
                    names = list(use.params.values())
                    plan.drop(names, f"the input of {use.name} is the same for all samples")


def _plain_values(plan: Plan, model: nn.Module, output: Output, batch: Any) -> Tensor:
    device = next(iter(plan.params.values())).device
    random = _random_state(device)
    versions = {name: buffer._version for name, buffer in model.named_buffers()}
    found = output(model, batch)
    values = check_values(found, 2)
    plan.reweights = found.reweighting is not None
    if not torch.equal(random, _random_state(device)):
        raise ModelError(
            f"the forward pass of {type(model).__name__} draws random numbers, so rows would "
            "differ from run to run; call model.eval(), or make its randomness an input"
        )
    changed = [n for n, b in model.named_buffers() if b._version != versions.get(n, b._version)]
    if changed:
        raise ModelError(
            f"the forward pass of {type(model).__name__} changes its buffers "
            f"({', '.join(changed[:3])}), so rows would differ from run to run; call model.eval()"
        )
    return values


def _random_state(device: torch.device) -> Tensor:
    on_cpu = torch.get_rng_state()
    if device.type != "cuda":
        return on_cpu
    return torch.cat([on_cpu, torch.cuda.get_rng_state(device)])


def _watch(
    plan: Plan, model: nn.Module, output: Output, batch: Any, size: int
) -> tuple[Shapes, Tensor]:
    """Return the input shapes of each layer's calls, and the values with shared ones expanded."""
    shapes: Shapes = defaultdict(list)

    def on_call(use: Use, inputs: Tensor, result: Tensor) -> Tensor:
        shapes[use.name].append(inputs.shape)
        return use.layout.expand(result, size) if use.layout.shared else result

    with tapped(plan.uses.values(), on_call):
        values = check_values(output(model, batch), size)
    return shapes, values


def _settle(plan: Plan, use: Use, two: list[torch.Size], three: list[torch.Size]) -> bool:
    """Set the layout of a use, or drop it; return whether it turned out to be shared."""
    names = list(use.params.values())
    if not two or not three:
        when = "in each" if two or three else "in the"
        plan.drop(names, f"{use.name} is not called {when} forward pass")
        return False
    found = {layout_of(a, b) for a, b in zip(two, three, strict=False)}
    layout = found.pop()
    if found or layout is None or len(two) != len(three):
        shown = [tuple(s) for s in two[:2]], [tuple(s) for s in three[:2]]
        plan.drop(
            names,
            f"{use.name} has its samples in no one place: inputs {shown[0]} for two, {shown[1]} "
            "for three",
        )
        return False
    newly_shared = layout.shared and not use.layout.shared
    use.layout = layout
    return newly_shared


def _expansion_is_harmless(
    plan: Plan, model: nn.Module, output: Output, batch: Any, plain: Tensor
) -> bool:
    try:
        _, values = _watch(plan, model, output, batch, 2)
    except Exception as error:  # whatever the model says to an expanded tensor
        if is_out_of_memory(error):
            raise
        return False
    return _same_values(model, output, values, plain)


def _same_values(model: nn.Module, output: Output, values: Tensor, plain: Tensor) -> bool:
    if values.shape != plain.shape:
        return False
    tolerance = SAME[arithmetic(model, output)]
    scale = float(plain.nan_to_num(0, 0, 0).abs().max())  # a sample that is not finite may be here
    return torch.allclose(values, plain, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _gains_by_channels_last(model: nn.Module, device: torch.device, computes_in: str) -> bool:
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    wide = [m for m in convolutions if m.in_channels >= MANY_CHANNELS]
    fit = device.type == "cpu" or (device.type == "cuda" and computes_in in TENSOR_CORES)
    return fit and bool(wide) and 2 * len(wide) >= len(convolutions)


def _takes_channels_last(model: nn.Module, output: Output, batch: Any, plain: Tensor) -> bool:
    """Whether forward and backward work on images in channels-last order, to the same values."""
    # tensors of our own, which may ask for gradients
    images = tree_map(Tensor.detach, channels_last(batch))
    try:
        with torch.enable_grad():
            inputs = [t for t in tensors(images) if t.dim() == 4 and t.is_floating_point()]
            for tensor in inputs:
                tensor.requires_grad_()
            values = check_values(output(model, images), 2)
            torch.autograd.grad(values.sum(), inputs, allow_unused=True)
    except Exception as error:  # a view of an axis that is no longer in a row, say
        if is_out_of_memory(error):
            raise
        return False
    return _same_values(model, output, values.detach(), plain)


def _activation_bytes(model: nn.Module, output: Output, batch: Any) -> int:
    total = 0

    def count(module: nn.Module, args: Any, result: Any) -> None:
        nonlocal total
        if isinstance(result, Tensor):
            total += result.numel() * result.element_size()

    leaves = [module for module in model.modules() if next(module.children(), None) is None]
    handles = [module.register_forward_hook(count) for module in leaves]
    try:
        output(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return COPIES * total
