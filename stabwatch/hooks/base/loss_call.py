"""The last call of a loss function with the model's output, kept for who calls the model once more on a slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossCall:
    """function: called with an output, a target and `options`; it returns the mean. shape: of the output it got."""

    function: Callable[..., Tensor]
    shape: torch.Size
    target: Tensor
    options: Mapping[str, Any]

    @classmethod
    def seen(
        cls, function: Callable[..., Tensor], input: Tensor, target: Tensor, options: Mapping[str, Any]
    ) -> LossCall | None:
        """A call; None of one that is not a mean over rows that can be cut."""
        plain = options.get("reduction", "mean") == "mean" and input.dim() > 0 and target.dim() > 0
        return (
            cls(function, input.shape, target.detach(), dict(options)) if plain and len(input) == len(target) else None
        )

    def of_slice(self, output: Tensor | None, whole: int, part: int) -> Tensor | None:
        """The loss of the model's output for the first `part` of `whole` samples; None where the rows do not match."""
        if output is None or not whole or self.shape[0] % whole:
            return None
        rows = self.shape[0] // whole * part
        if output.shape[1:] == self.shape[1:] and len(output) == rows:
            found = output
        elif len(self.shape) == 2 and output.shape[-1] == self.shape[-1] and output.numel() == rows * self.shape[-1]:
            found = output.flatten(0, -2)
        elif len(self.shape) == 1 and output.shape[1:] == (1,) and len(output) == rows:
            found = output[:, 0]
        else:
            return None
        return self.function(found, self.target[:rows], **self.options)
