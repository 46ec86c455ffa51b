"""Where a piece of our code runs: for real, inside dynamo's trace, or on fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor


def tracing() -> bool:
    """True while torch.compile traces: what is done now becomes part of the graph."""
    return torch.compiler.is_dynamo_compiling()


def on_host(x: Tensor) -> bool:
    """True where numbers may be read at once."""
    return x.device.type == "cpu" and not tracing()


def is_fake(x: Tensor) -> bool:
    """True while a compiler or an exporter replays a graph on tensors without data: nothing is to be seen there."""
    return isinstance(x, FakeTensor | FunctionalTensor)
