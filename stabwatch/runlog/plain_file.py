"""Opening files of a run folder that somebody else may have made: no links, which lead anywhere, and no pipes."""

from __future__ import annotations

import errno
import os
import stat


def plain_file(path: str, flags: int) -> int:
    """An opener for `open`. Raises OSError for a link, and for a pipe or a device, which may wait or never end."""
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link", path) from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is not a file", path)
    return file
