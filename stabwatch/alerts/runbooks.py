"""The runbooks: one page of Markdown for each rule and cause, shipped with the package."""

from __future__ import annotations

from pathlib import Path

import stabwatch
from stabwatch.errors import RuleError

_PACKAGE = Path(stabwatch.__file__).parent
_FOLDERS = (_PACKAGE / "runbooks", _PACKAGE.parent / "docs" / "runbooks")
"""In an installed package, and in a copy of the repository."""


def runbook_names() -> list[str]:
    """Names of all runbooks, sorted."""
    folder = _folder()
    return sorted(path.stem for path in folder.glob("*.md") if path.stem != "README") if folder else []


def runbook(name: str) -> str:
    """The Markdown of a runbook, by the name of its rule, with or without `Stabwatch` before it. Raises RuleError."""
    folder, wanted = _folder(), name.removeprefix("Stabwatch").lower()
    found = next((known for known in runbook_names() if known.lower() == wanted), None)
    if folder is None or found is None:
        raise RuleError(f"No runbook is called `{name}`. `stabwatch runbook` lists them.")
    return (folder / f"{found}.md").read_text(encoding="utf-8")


def _folder() -> Path | None:
    return next((folder for folder in _FOLDERS if folder.is_dir()), None)
