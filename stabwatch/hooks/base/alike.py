"""What the model is given and returns: how large it is, whether samples differ, and whether it is linear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.linear_chain import linear_layers
from stabwatch.hooks.base.output_layer import untrained_output
from stabwatch.hooks.base.run_accumulators import (
    ALIKE,
    APART,
    INPUT_SPAN,
    LINEAR,
    UNTRAINED,
    RunAccumulators,
    root_mean_square,
)
from stabwatch.hooks.base.tensors import first_tensor, is_plain
from stabwatch.kernels.alike import FEWEST, alike, directions_apart

LARGE = 10.0
"""Root mean square of inputs that are not scaled: a generator may well begin with a thousandth, beside data of 1."""


@torch.no_grad()
def note_inputs(run: RunAccumulators, inputs: Iterable[Any], named: Mapping[str, Any]) -> None:
    """The model is called. Nothing is noted where inputs differ in their first dimension: a graph, a prompt."""
    given = [x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.dim()]
    if not given or not all(type(x) is Tensor and is_plain(x) for x in given):
        return
    if len(given[0]) >= FEWEST and all(len(x) == len(given[0]) for x in given):
        run.note(ALIKE, torch.stack([alike(x) for x in given]).amin())


def note_size(run: RunAccumulators, inputs: Iterable[Any]) -> None:
    """The model is called: how large is the largest of its inputs that are not single numbers?"""
    given = [x for x in inputs if not isinstance(x, Tensor) or x.dim()]
    batch = first_tensor(given)
    if batch is not None and batch.numel() and batch.layout == torch.strided:
        beside = [x for x in given if isinstance(x, Tensor) and x is not batch and is_plain(x) and x.numel()]
        run.update_input(batch, [x for x in beside if x.is_floating_point()])


class InputSpan:
    """How far apart the inputs are in size with which the model is called in one step, if one is not scaled."""

    def __init__(self) -> None:
        self._step = -1
        self._shape = torch.Size()
        self._sizes: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def forward_begins(self, run: RunAccumulators, step: int, inputs: Iterable[Any]) -> None:
        """The model is called, in a step whose inputs are looked at."""
        batch = first_tensor(inputs)
        if batch is None or type(batch) is not Tensor or not is_plain(batch) or not batch.is_floating_point():
            return
        if not batch.dim() or not batch.numel():
            return
        size = root_mean_square(batch)
        if step != self._step or self._sizes is None or batch.shape[1:] != self._shape:
            self._step, self._shape, self._sizes = step, batch.shape[1:], (size, size)
            return
        least, most = self._sizes
        self._sizes = least, most = torch.minimum(least, size), torch.maximum(most, size)
        run.note(INPUT_SPAN, torch.where((least > 0) & (most > LARGE), most / least, 1.0))


@torch.no_grad()
def note_outputs(run: RunAccumulators, output: Any, model: nn.Module) -> None:
    """The model has returned: how far are its outputs for different samples apart? Is it linear, its head trained?"""
    out = first_tensor(output)
    if out is None or type(out) is not Tensor or not is_plain(out):
        return
    if (found := directions_apart(out)) is not None:
        run.note(APART, found)
    if out.grad_fn is not None:
        run.note(LINEAR, float(linear_layers(out)))
        run.note(UNTRAINED, untrained_output(model, out))
