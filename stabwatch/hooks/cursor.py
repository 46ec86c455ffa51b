"""Which watched module is being called now, and whether it is the backward pass that calls it."""

from __future__ import annotations

import sys
import threading
import weakref
from types import FrameType

import torch
from torch import nn

from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.isolation import Isolation
from stabwatch.hooks.base.sites import Site

_CALL = vars(nn.Module)["_call_impl"].__code__


class Cursor:
    """The model that was called last, and the watched module that a compiler traces now.

    One per process: torch's functions do not say which module called them. For eager calls see `caller`.
    """

    def __init__(self) -> None:
        self.site: Site | None = None
        self.root: Site | None = None
        self.eager: Site | None = None
        """The same, of calls that are no part of a compiled graph."""


CURSOR = Cursor()
_here = threading.local()


def called(root: Site) -> None:
    """This model is called, or goes on behind a call of another one inside it."""
    CURSOR.root = CURSOR.eager = root
    _here.root = weakref.ref(root)


def last_called() -> Site | None:
    """The model that this thread called last, or the process, if the thread has called none that is watched.

    Graphs say for the process only which model they belong to.
    """
    if CURSOR.root is not CURSOR.eager:
        return CURSOR.root
    known = getattr(_here, "root", None)
    root: Site | None = None if known is None else known()
    return CURSOR.root if root is None or not root.flags.attached else root


def listening() -> Isolation | None:
    """Where errors and time of what is noted of a call are counted; None while the model's calls are not measured."""
    try:
        root = last_called()
    except Exception as error:
        if CURSOR.root is not None:
            CURSOR.root.context.isolation.caught("functions", error)
        return None
    if root is None:
        return None
    flags = root.flags
    return root.context.isolation if flags.in_forward and flags.open else None  # `recording`, without a call of it


def caller(outside: TapContext | None = None) -> Site | None:
    """The innermost watched module whose call is under way in this thread, of those that belong to one place only.

    Found by the frames of the running calls: right for modules that several others share, for calls within calls, and
    after exceptions. Where only shared modules are under way inside of the model, the innermost of them.
    outside: modules of this watch do not count.
    """
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code is _CALL:
            site = frame.f_locals["self"].__dict__.get("_stabwatch")
            if site is not None and site.context is not outside:
                if site.name == "":
                    return found or site
                if not site.shared:
                    return site
                found = found or site
        frame = frame.f_back
    return found


def root_of(site: Site) -> Site:
    """The site of the model that a site belongs to."""
    while site.parent is not None:
        site = site.parent
    return site


def in_backward() -> bool:
    """True while autograd runs: a forward seen then is a recomputation, which was counted before."""
    return torch._C._current_graph_task_id() != -1
