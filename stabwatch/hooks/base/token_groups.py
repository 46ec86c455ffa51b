"""Which tokens are averaged apart: padding from the others, text from images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = ("attention_mask",)
HIDDEN = ("src_key_padding_mask", "key_padding_mask")
"""Keywords by which models are told what is padding: true where a token counts, and true where it does not."""


class TokenGroups:
    """Masks of the current forward: those that the user gave, or those that the model is called with."""

    def __init__(self) -> None:
        self._sent: tuple[Tensor, ...] | None = None
        self._masks: tuple[Tensor, ...] = ()

    def send(self, masks: Mapping[str, Tensor]) -> None:
        """Set the masks of the next forward. Raises ValueError for anything but (batch, tokens)."""
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dim() != 2:
                raise ValueError(f"token_groups: `{name}` must be a tensor of shape (batch, tokens)")
        self._sent = tuple(mask.detach() for mask in masks.values()) or None

    def forward_begins(self, model: nn.Module, named: Mapping[str, Any]) -> None:
        """The model is called with these keywords; masks that the user gave are for this call and no other."""
        self._masks = self._sent if self._sent is not None else _masks(model, named) if named else ()
        self._sent = None

    def of(self, x: Tensor) -> Tensor | None:
        """bool (groups, B, T) for tokens x (B, T, D); no token is in two. None where no mask is known for them."""
        masks = [m for m in self._masks if m.shape == x.shape[:2] and m.device == x.device]
        if not masks:
            return None
        out: list[Tensor] = []
        free = torch.ones_like(masks[0], dtype=torch.bool)
        for mask in masks:
            out.append(free & (mask != 0))
            free = free & (mask == 0)
        return torch.stack(out)


def _is_binary(mask: Tensor, name: str) -> bool:
    """Is it a mask of ones and zeros? A key padding mask of floats is added to the logits instead."""
    return not mask.is_floating_point() or name in SHOWN


def _masks(model: nn.Module, named: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """At most one group: the tokens that are not padding. For an encoder with a decoder, one mask is not enough."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return ()
    for name in (*SHOWN, *HIDDEN):
        mask = named.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 2 and _is_binary(mask, name):
            mask = mask.detach()
            return (mask == 0 if name in HIDDEN else mask,)
    return ()
