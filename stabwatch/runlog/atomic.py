"""Output that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A folder beside `path` to work in; what is made there under the name of `path` takes its place at the end.

    Whatever ends it early, a signal of the keyboard too, leaves `path` as it was and nothing beside it.
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
