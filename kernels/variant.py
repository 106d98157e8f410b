"""One way in which a kernel is launched, for compiling it where there is no GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A kernel with its tile sizes. Each file of kernels gives its own with ``variants()``.

    Attributes:
        name: says what is special about it, such as ``"fp32 batch 128"``.
        function: the ``@triton.jit`` kernel.
        signature: types of the arguments that are not constexpr, such as ``"*fp32"`` or ``"i32"``.
        constants: values of the constexpr arguments.
        warps: ``num_warps`` of the launch.
        tensor_cores: whether its products must be on tensor cores.
        stages: ``num_stages`` of the launch.
        divisible: integer arguments that are multiples of 16 in the launches that matter; pointers
            always are.
    """

    name: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    tensor_cores: bool = False
    stages: int = 3
    divisible: tuple[str, ...] = ()
