"""How long one rank works in a step, by the host's clock: the time in which it cannot be waiting for another rank.

Where DistributedDataParallel (or `replicate()`) averages the gradients, ranks wait for each other between the end of
autograd's graph and the return of `backward`, in a callback that the engine runs last. A callback of ours, queued
before it, takes the time between the two. On an accelerator the host runs ahead of the device: there only the time
before the last backward pass counts.

Where parameters are sharded, ranks wait for each other in forward and backward passes, so only the time outside of them
counts. Otherwise the training loop reduces the gradients itself, after the last backward pass; the time up to its end
counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_COMPILED = "torch._dynamo.compiled_autograd"


class WorkClock:
    """The times of one step. cpu: the host computes, not an accelerator."""

    def __init__(self, cpu: bool) -> None:
        self._cpu = cpu
        self._handle: Any = None
        self.step_begins(time.perf_counter())

    def step_begins(self, now: float) -> None:
        """A step begins; `now` is the time at which the one before it ended."""
        self._began = now
        self._first_forward: float | None = None
        self._forward_over: float | None = None
        self._pass_began: float | None = None
        self._graph_over: float | None = None
        self._pass_over: float | None = None
        self._waited = 0.0

    def forward_begins(self) -> None:
        """The model is called."""
        if self._first_forward is None:
            self._first_forward = time.perf_counter()

    def forward_ended(self) -> None:
        """It has returned."""
        self._forward_over = time.perf_counter()

    def pass_begins(self, roots: Sequence[Tensor]) -> None:
        """A backward pass is about to run. roots: where it begins, if it ends with a wait for other ranks."""
        self._pass_began, self._graph_over = time.perf_counter(), None
        if roots and self._cpu and not _compiled():
            root = next((root for root in roots if root.grad_fn is not None), None)
            self._handle = None if root is None else root.register_hook(self._in_graph)

    def _in_graph(self, gradient: Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(self._graph_ends)

    def _graph_ends(self) -> None:
        self._graph_over = time.perf_counter()

    def pass_ended(self) -> None:
        """The backward pass has returned."""
        now = time.perf_counter()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._pass_began is not None:
            self._pass_over = now
            self._waited += now - (self._graph_over or self._pass_began)

    def seconds(self, now: float, coupled: bool, sharded: bool) -> float | None:
        """Time in which the rank worked, until `now`; None where the model was not called.

        coupled: something averages the gradients in the backward pass. sharded: parameters are spread over ranks.
        """
        if self._pass_began is None or self._pass_over is None or not self._cpu:
            end = self._forward_over if self._pass_began is None else self._pass_began
            return None if end is None else end - self._began
        if sharded:
            before = (self._first_forward or self._pass_began) - self._began
            return before + now - self._pass_over
        if coupled:
            return now - self._began - self._waited
        return (self._graph_over or self._pass_over) - self._began


def _compiled() -> bool:
    """Does a compiler take the backward graph, with all hooks in it?"""
    return bool(getattr(sys.modules.get(_COMPILED), "compiled_autograd_enabled", False))
