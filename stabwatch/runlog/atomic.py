"""Atomic output: a file or folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A draft path next to `path`; at the end, the draft replaces `path`.

    If anything interrupts it, Ctrl-C too, `path` is unchanged and nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        draft = work / path.name
        yield draft
        if draft.is_dir() and path.is_dir():
            path.rename(work / "old")
        os.replace(draft, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
