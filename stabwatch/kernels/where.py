"""Whether code runs normally, in dynamo's trace, or on fake tensors."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor


def tracing() -> bool:
    """True while torch.compile traces; then operations become part of the graph."""
    return torch.compiler.is_dynamo_compiling()


def compilers_used() -> bool:
    """Has `torch.compile` been called in this process? True where this version of torch does not tell."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(frames, "cached_backends", {0: "not known"})  # None is that of what must not be compiled
    return frames is not None and any(backend is not None for backend in backends.values())


def on_host(x: Tensor) -> bool:
    """True where numbers can be read without waiting."""
    return x.device.type == "cpu" and not tracing()


def is_fake(x: Tensor) -> bool:
    """True while a compiler or an exporter runs a graph on tensors without data; then there is nothing to measure."""
    return isinstance(x, FakeTensor | FunctionalTensor)
