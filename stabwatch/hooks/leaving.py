"""With which code a program leaves by `sys.exit`, `exit` or `quit`.

The interpreter tells nobody that a SystemExit ends it. So each one that these raise holds a mark, which is gone with
it. Where no function runs at that moment, nothing has caught it. `raise SystemExit` is not followed.
"""

from __future__ import annotations

import sys
import threading
import weakref
from _sitebuiltins import Quitter
from contextlib import suppress
from functools import partial, wraps
from typing import Any, NoReturn

from stabwatch.hooks.base.entry import Ours
from stabwatch.hooks.patching import MethodPatch, Patch

_exit, _quit = sys.exit, Quitter.__call__


class _Mark(Ours):
    """Lives as long as the error that holds it."""


class Leaving:
    """Follows each SystemExit to its end."""

    def __init__(self) -> None:
        self._marks: set[weakref.ref[_Mark]] = set()
        self.error: SystemExit | None = None
        """What has ended the program."""

    def begins(self, error: SystemExit) -> None:
        """It was raised, and may be caught."""
        if not threading.main_thread().is_alive():
            return  # the program has ended already: `atexit` calls this
        vars(error)["_stabwatch"] = mark = _Mark()
        self._marks.add(weakref.ref(mark, partial(self._over, error.args)))

    def _over(self, args: tuple[Any, ...], mark: weakref.ref[_Mark]) -> None:
        self._marks.discard(mark)
        if sys._getframe().f_back is None and threading.current_thread() is threading.main_thread():
            self.error = SystemExit(*args)


LEAVING = Leaving()


@wraps(_exit)
def exit_program(*args: Any, **kwargs: Any) -> NoReturn:
    """`sys.exit`."""
    try:
        _exit(*args, **kwargs)
    except SystemExit as error:
        with suppress(Exception):
            LEAVING.begins(error)
        raise


@wraps(_quit)
def quit_program(self: Any, *args: Any, **kwargs: Any) -> Any:
    """`exit` and `quit`."""
    try:
        return _quit(self, *args, **kwargs)
    except SystemExit as error:
        with suppress(Exception):
            LEAVING.begins(error)
        raise


LEAVING_PATCHES = (Patch(_exit, exit_program), MethodPatch(Quitter, "__call__", quit_program))
