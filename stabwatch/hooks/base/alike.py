"""Batches whose samples are all the same, and outputs that become so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from stabwatch.hooks.base.run_accumulators import ALIKE, APART, RunAccumulators
from stabwatch.hooks.base.tensors import first_tensor, is_plain
from stabwatch.kernels.alike import FEWEST, alike, directions_apart


@torch.no_grad()
def note_inputs(run: RunAccumulators, inputs: Iterable[Any], named: Mapping[str, Any]) -> None:
    """The model is called. Nothing is noted where inputs differ in their first dimension: a graph, a prompt."""
    given = [x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.dim()]
    if not given or not all(type(x) is Tensor and is_plain(x) for x in given):
        return
    if len(given[0]) >= FEWEST and all(len(x) == len(given[0]) for x in given):
        run.note(ALIKE, torch.stack([alike(x) for x in given]).amin())


@torch.no_grad()
def note_outputs(run: RunAccumulators, output: Any) -> None:
    """The model has returned: how far are its outputs for different samples apart?"""
    out = first_tensor(output)
    if out is not None and type(out) is Tensor and is_plain(out) and (found := directions_apart(out)) is not None:
        run.note(APART, found)
