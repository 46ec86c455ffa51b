"""Is the layer that gives the model's output frozen although it was never trained?"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stabwatch.hooks.base.graph_kinds import inputs_of, kind_of
from stabwatch.hooks.base.linear_chain import LAYERS, parameter_of
from stabwatch.hooks.base.tensors import is_plain

_DEEP = 32
"""Most functions between the output and its layer."""


def untrained_output(model: nn.Module, output: Tensor) -> Tensor | float:
    """1, float32 (), where the last linear layer before the output is frozen and its bias is exactly 0; else 0.

    No training leaves a bias at 0, and libraries begin new heads so. Nothing waits for the device.
    """
    if not _ends_frozen(output):
        return 0.0
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    bias = linear[-1].bias if linear else None
    return 0.0 if bias is None or not is_plain(bias) else (bias.detach() == 0).all().float()


def _ends_frozen(output: Tensor) -> bool:
    """Has the last linear function before the output no parameter that is trained?"""
    node: Any = output.grad_fn
    for _ in range(_DEEP):
        paths = [following for following in inputs_of(node) if parameter_of(following) is None]
        if kind_of(node) in LAYERS:
            return len(paths) == 1 == len(inputs_of(node))
        if len(paths) != 1:
            return False
        node = paths[0]
    return False
