"""Which form of a reduction runs: the fused Triton kernel, or plain torch; and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from stabwatch.kernels.where import tracing

VARIABLE = "STABWATCH_KERNELS"
"""`eager` switches the fused kernels off. `fused` also runs them on CPU tensors, if Triton's interpreter is on."""


@dataclass(frozen=True)
class Choice:
    """The decision and its reason."""

    fused: bool
    reason: str


TRACED = Choice(False, "traced: plain torch is fused by the compiler")


def choose(x: Tensor) -> Choice:
    """Choose fused or plain torch for reductions of `x`. Takes about 1 microsecond; a device's first call compiles."""
    if tracing():
        return TRACED
    return _decide(x.device, os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=64)
def _decide(device: torch.device, wish: str) -> Choice:
    if wish not in ("", "eager", "fused"):
        raise ValueError(f"{VARIABLE} must be 'eager' or 'fused', not {wish!r}. Unset it to let stabwatch choose.")
    if wish == "eager":
        return Choice(False, f"{VARIABLE}=eager")
    if device.type != "cuda" and wish != "fused":
        return Choice(False, "not a CUDA tensor")
    if find_spec("triton") is None:
        return Choice(False, "triton is not installed")
    from stabwatch.kernels.launch import INTERPRETED

    if device.type != "cuda":
        return Choice(True, "interpreter") if INTERPRETED else Choice(False, "not a CUDA tensor")
    return _tried(device)


def _tried(device: torch.device) -> Choice:
    """Triton needs a C compiler and a supported device, so this tries a reduction of one number."""
    from stabwatch.kernels.moments.fused import moments

    try:
        moments(torch.ones(1, device=device))
    except Exception as error:
        return Choice(False, f"triton does not work here: {type(error).__name__}: {error}")
    return Choice(True, "CUDA tensor")
