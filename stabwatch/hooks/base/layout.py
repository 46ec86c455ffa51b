"""Which axis of an activation is which: samples, tokens, features."""

from __future__ import annotations

from torch import Tensor

from stabwatch.hooks.base.roles import NO_ROLE, Role


def as_samples(x: Tensor, role: Role) -> Tensor:
    """Samples first, then tokens."""
    return x.transpose(0, 1) if role.sequence_first and x.dim() == 3 else x


def as_tokens(x: Tensor, role: Role = NO_ROLE) -> Tensor:
    """(B, T, D) or (N, D). The pixels of an image are its tokens, its channels their features."""
    if x.dim() == 4:
        return x.flatten(1, 2) if role.features_last(x.shape) else x.flatten(2).mT
    return x if x.dim() in (2, 3) else x.reshape(-1, x.shape[-1])
