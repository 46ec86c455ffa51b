"""Is dropout on while the model is in evaluation mode? Looked at in its first forwards there.

`F.dropout(x, p)` drops in either mode, and so does `scaled_dot_product_attention` with a `dropout_p`.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stabwatch.hooks.base.entry import observed
from stabwatch.hooks.base.isolation import Isolation
from stabwatch.hooks.patching import MethodPatch

LOOKED_AT = 16
"""Forwards in evaluation mode that are looked at, of each watch."""
DROPPING = ("dropout", "dropout1d", "dropout2d", "dropout3d")


class Evaluations:
    """Looks at the first forwards of one model in evaluation mode: functions that drop are replaced meanwhile."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._left = LOOKED_AT
        self._patches: list[MethodPatch] = []
        self._thread = 0
        self._dropped = math.nan

    @property
    def looking(self) -> bool:
        """Is a forward looked at now?"""
        return bool(self._patches)

    def begins(self) -> None:
        """A forward in evaluation mode begins."""
        self.ends()
        if not self._left:
            return
        self._left -= 1
        self._thread = threading.get_ident()
        self._dropped = max(0.0, self._dropped)  # NaN is not kept
        for name in DROPPING:
            self._patch(name, self._saw_dropout)
        self._patch("scaled_dot_product_attention", self._saw_attention)

    def ends(self) -> None:
        """It has ended, or an error has left it."""
        patches, self._patches = self._patches, []
        for patch in patches:
            patch.remove()

    def take(self) -> float:
        """1 if dropout was on in a forward since the last call, 0 if it was not, NaN if none was looked at."""
        dropped, self._dropped = self._dropped, math.nan
        return dropped

    def _patch(self, name: str, seen: Callable[..., None]) -> None:
        patch = MethodPatch(F, name, observed(getattr(F, name), seen, None, self._listens))
        self._patches.append(patch)
        patch.install()

    def _listens(self) -> Isolation | None:
        return self._isolation if threading.get_ident() == self._thread else None

    def _saw_dropout(
        self, out: Tensor, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> None:
        if training and p > 0 and not _meant():
            self._dropped = 1.0

    def _saw_attention(
        self, out: Tensor, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, *args: Any,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        if dropout_p > 0 and not _meant():
            self._dropped = 1.0


def _meant() -> bool:
    """Is the module whose code calls in training mode, in a model that is not? Who samples by dropout does so."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return module.training
        frame = frame.f_back
    return False
