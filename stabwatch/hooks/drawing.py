"""Draws from distributions whose parameters a model gives: a policy acts, and makes its own data.

`sample` gives no gradient, so that what is drawn is no part of the loss, as in a variational model (`rsample`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from stabwatch.hooks.backward import LISTENERS
from stabwatch.hooks.base.entry import shielded
from stabwatch.hooks.patching import MethodPatch


def _observed(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`sample` of a class of distributions."""

    @functools.wraps(original)
    def sample(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.compiler.is_dynamo_compiling():
            for context in tuple(LISTENERS):
                with shielded(context.isolation, "draw"):
                    if any(isinstance(x, Tensor) and x.requires_grad for x in vars(self).values()):
                        context.actions.drawn()
        return original(self, *args, **kwargs)

    return sample


def _patches() -> tuple[MethodPatch, ...]:
    """For each class that has a `sample` of its own."""
    kinds = [x for x in vars(torch.distributions).values() if isinstance(x, type) and issubclass(x, Distribution)]
    own = [(kind, vars(kind)["sample"]) for kind in kinds if "sample" in vars(kind)]
    return tuple(MethodPatch(kind, "sample", _observed(original)) for kind, original in own)


DRAWING_PATCHES = _patches()
