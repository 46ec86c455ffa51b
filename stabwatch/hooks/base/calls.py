"""What the running calls say: through which wrappers a model is called, and with whose parameters."""

from __future__ import annotations

import sys
from types import FrameType

from torch import nn

from stabwatch.hooks.base.naming import unwrap

_CALL = vars(nn.Module)["_call_impl"].__code__


def outermost(model: nn.Module) -> nn.Module:
    """The module whose call under way leads to that of `model` through nothing but wrappers; else `model`."""
    frame: FrameType | None = sys._getframe(1)
    found = model
    while frame is not None:
        if frame.f_code is _CALL:
            module = frame.f_locals["self"]
            if unwrap(module) is model:
                found = module
        frame = frame.f_back
    return found


def inside_functional_call() -> bool:
    """Is the call under way one of `torch.func.functional_call`, which lends a model other parameters?"""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_functional_call":
            return True
        frame = frame.f_back
    return False
