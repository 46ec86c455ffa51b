"""Iterators of data loaders: how many were begun, and how many batches came from them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from stabwatch.hooks.backward import LISTENERS
from stabwatch.hooks.patching import MethodPatch


@dataclass
class LoaderCounts:
    """Of this process. begun: iterators of loaders of several batches. given: batches of all loaders."""

    begun: int = 0
    given: int = 0

    def begins(self, loader: DataLoader[Any]) -> None:
        """A loader was asked for an iterator."""
        try:
            several = len(loader._index_sampler) > 1
        except Exception:  # not known of an iterable dataset; a sampler of the user's may say anything
            several = False
        self.begun += several


LOADED = LoaderCounts()
_iter, _next = DataLoader.__iter__, _BaseDataLoaderIter.__next__


@functools.wraps(_iter)
def begin_loader(self: DataLoader[Any]) -> Any:
    found = _iter(self)
    if LISTENERS:
        LISTENERS[0].isolation.run("batch", "always", LOADED.begins, self)
    return found


@functools.wraps(_next)
def next_batch(self: Any) -> Any:
    batch = _next(self)
    LOADED.given += 1
    return batch


LOADER_PATCHES = (
    MethodPatch(DataLoader, "__iter__", begin_loader),
    MethodPatch(_BaseDataLoaderIter, "__next__", next_batch),
)
