"""Does the program write into the weights between two steps, as clipping, normalising, masking or averaging do?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.tensors import is_plain, local

MATRICES, NUMBERS, ROWS = 8, 64, 64
"""Matrices of an optimizer that are looked at, the largest ones of as many parts of the model, and numbers of each.

Then rows that are compared with each other, by as many numbers.
"""
FLAT = 1e-4
"""Largest gradient over the largest weight, of those that are looked at, below which a loss has come to its end."""
WITNESSES, EVEN = 3, 16
"""Of the matrices, those that are looked at around a step, and numbers of each that are read after every one."""
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of as many bytes, by which NaN is equal to itself."""
EACH = 17
"""Steps of an optimizer between two at which its writes are looked at; odd, as it may write in each fourth of them."""


class _InMemory:
    """Some numbers of weights in the memory of the host, which are read without asking a device.

    `p.data.copy_(...)` and `p.data = ...` change them, and autograd does not count it.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        mine = [p for p in weights if _on_host(p)]
        mine = [p for p in mine if p.dtype == mine[0].dtype]
        self._held = mine[:: max(1, len(mine) // WITNESSES)]
        self._sizes = [p.shape for p in self._held]
        self._find()

    def _find(self) -> None:
        self._places = [p.data_ptr() for p in self._held]
        flat = [p.detach().view(-1) for p in self._held]
        self._views = [x[:: x.numel() // EVEN | 1].view(BITS[x.element_size()]) for x in flat]

    def read(self) -> Tensor | None:
        """A copy of them; None if there are none, or if a weight has another shape by now, or lies on a device."""
        if not self._held:
            return None
        if any(p.data_ptr() != place for p, place in zip(self._held, self._places, strict=True)):
            same = all(p.shape == size for p, size in zip(self._held, self._sizes, strict=True))
            if not same or not all(map(_on_host, self._held)):
                return None
            self._find()
        return torch.cat(self._views)


def _on_host(p: nn.Parameter) -> bool:
    x = p.detach()
    plain = is_plain(x) and not hasattr(x, "_local_tensor") and x.device.type == "cpu" and x.is_contiguous()
    return plain and x.element_size() in BITS and x.data_ptr() != 0


class Rewrites:
    """Compares some weights as a step begins with those as the step before ended. Nothing here waits for the device."""

    def __init__(self) -> None:
        self._matrices: WeakKeyDictionary[Any, list[nn.Parameter]] = WeakKeyDictionary()
        self._counted: WeakKeyDictionary[Any, list[nn.Parameter]] = WeakKeyDictionary()
        """Of these, those whose writes autograd counts."""
        self._in_memory = _InMemory(())
        self._after: Tensor | None = None
        self._kept: tuple[list[nn.Parameter], Tensor] | None = None
        self._stepping: tuple[list[nn.Parameter], Tensor, Tensor] | None = None
        self._taken: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self.due = False
        """Whether weights are looked at around the step that was begun last."""
        self.versions: list[tuple[nn.Parameter, int]] = []
        """Of the matrices after the last step of an optimizer; empty once a forward has begun."""

    @torch.no_grad()
    def before_step(self, optimizer: Any, reached: bool) -> None:
        """An optimizer is about to step: in each 17th of its steps keep numbers of its matrices, and of gradients.

        reached: a backward pass has reached the model, so that there should be gradients.
        """
        self._stepping = None
        taken = self._taken[optimizer] = self._taken.get(optimizer, 0) + 1
        self.due = taken % EACH == 0
        if not self.due:
            return
        every = [p for p in self._matrices.get(optimizer, ()) if p.requires_grad]
        every = every[:: max(1, -(-len(every) // WITNESSES))]
        held = [p for p in every if p.grad is not None and is_plain(local(p.grad))]
        gone = reached and not held and all(p.grad is None for p in every)
        held = every if gone else held
        mine = [p for p in held if p.device == held[0].device]
        if mine:
            gradients = [p.grad for p in mine if p.grad is not None]
            kept = _numbers(mine)
            steep = kept.new_ones((), dtype=torch.bool)
            if not gone:
                steep = _numbers(gradients).abs().amax() > FLAT * kept.abs().amax()
            self._stepping = mine, kept, steep

    @torch.no_grad()
    def after_step(self) -> Tensor | None:
        """It has stepped: float32 (), 1 if none of these numbers has changed, else 0.

        Also 0 where gradients are next to nothing: a loss that has come to its end has none.
        """
        if self._stepping is None:
            return None
        (matrices, before, steep), self._stepping = self._stepping, None
        now = _numbers(matrices)
        if now.shape != before.shape or now.device != before.device:
            return None
        return ((now == before).all() & steep).float()

    def stepped(self) -> None:
        """An optimizer has stepped: what is written from now on was not written by it."""
        self.versions = [(p, p._version) for held in self._counted.values() for p in held]
        self._after = self._in_memory.read()
        if self._after is None and self.versions:
            self._in_memory = _InMemory([p for p, _ in self.versions])

    def written(self) -> bool:
        """A forward begins: has anything written into the matrices since then?

        As far as autograd counts it; and in the memory of the host, where some of their numbers are compared.
        """
        kept, self.versions, after = self.versions, [], self._after
        if any(p._version != version for p, version in kept):
            return True
        now = None if after is None else self._in_memory.read()
        return now is not None and after is not None and not torch.equal(now, after)

    def model_changed(self) -> None:
        """It has other parameters: nothing is known of them yet."""
        self._matrices.clear()
        self._counted.clear()
        self._kept = self._stepping = None
        self.versions = []
        self._in_memory, self._after = _InMemory(()), None

    def follow(self, optimizer: Any) -> None:
        """Look at matrices of this optimizer that are trained, from the next step on."""
        held = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad and _is_matrix(p)]
        length = max(1, -(-len(held) // MATRICES))
        self._matrices[optimizer] = [max(held[i : i + length], key=_size) for i in range(0, len(held), length)]
        self._counted[optimizer] = [p for p in self._matrices[optimizer] if not p.is_inference()]
        self._in_memory = _InMemory([p for held in self._counted.values() for p in held])

    @torch.no_grad()
    def alike(self, optimizer: Any) -> Tensor | None:
        """Share of its matrices whose rows are all the same and not zero, float32 (); None without any."""
        held = [local(p.detach()) for p in self._matrices.get(optimizer, ())]
        rows = [x[:ROWS].reshape(min(len(x), ROWS), -1)[:, :NUMBERS] for x in held if len(x) > 1 and x.numel() > len(x)]
        same = [(x == x[:1]).all() & x.any() for x in rows if x.device == rows[0].device]
        return torch.stack(same).float().mean() if same else None

    def step_ended(self, wanted: bool) -> None:
        """A step is over. wanted: keep the weights, to compare them when the next one begins."""
        self._kept = None
        every = [p for held in self._matrices.values() for p in held] if wanted else []
        mine = [p for p in every if p.device == every[0].device]  # a copy to the host would wait
        if mine:
            self._kept = mine, _numbers(mine)

    def step_begins(self) -> Tensor | None:
        """Norm of the change of these weights since the last step over their norm, float32 (); None if not kept.

        0 where they are not finite: what then differs is no answer.
        """
        if self._kept is None:
            return None
        (matrices, before), self._kept = self._kept, None
        if any(p.device != before.device for p in matrices):
            return None
        now = _numbers(matrices)
        if now.shape != before.shape:
            return None
        return ((now - before).norm() / before.norm()).nan_to_num(0.0, 1.0)


def _size(parameter: nn.Parameter) -> int:
    return int(parameter.numel())


def _is_matrix(parameter: nn.Parameter) -> bool:
    weight = local(parameter.detach())
    return is_plain(weight) and weight.is_floating_point() and weight.dim() > 1 and weight.numel() > 0


@torch.no_grad()
def _numbers(matrices: Sequence[Tensor]) -> Tensor:
    """float32 (n,), a copy: numbers of each matrix, evenly spread."""
    flat = [local(p.detach()).reshape(-1) for p in matrices]
    return torch.cat([x[:: x.numel() // NUMBERS | 1].float() for x in flat])
