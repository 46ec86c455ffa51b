"""Hooks of MkDocs: pages that are kept or declared elsewhere in the repository, and links that leave docs/."""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository's root that are pages of the site."""
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^ *(```|~~~)")
_log = logging.getLogger("mkdocs.hooks.stabwatch")


def on_config(config: MkDocsConfig) -> None:
    """Put the pages of a folder where the navigation names the folder."""
    config.nav = _expanded(config.nav)


def _expanded(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_expanded(item) for item in entry]
    if isinstance(entry, dict):
        return {title: _expanded(item) for title, item in entry.items()}
    if not entry.endswith("/"):
        return entry
    pages = sorted(path.name for path in (ROOT / "docs" / entry).glob("*.md") if path.name != "README.md")
    return [f"{entry}README.md", *(f"{entry}{name}" for name in pages)]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are not in docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "cli.md", content=command_line()))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are written for the repository become links of the site, or to the repository on the web."""
    source = _SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    lines, fenced = [], False
    for line in markdown.split("\n"):
        fenced ^= bool(_FENCE.match(line))
        lines.append(line if fenced else _LINK.sub(lambda m: _target(m, source, page.file.src_uri, config), line))
    return "\n".join(lines)


def _target(match: re.Match[str], source: str, page: str, config: MkDocsConfig) -> str:
    """Where a link leads that the file `source` has, seen from the page that is made of it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
    anchor = match[2] or ""
    if path == "docs/cli.md":
        return _relative("cli.md", page) + anchor
    if not (ROOT / path).exists():
        _log.warning("%s links to %s, and there is no %s", source, match[1], path)
        return match[0]
    if path in PAGES:
        return _relative(PAGES[path], page) + anchor
    if path.startswith("docs/"):
        inside = path.removeprefix("docs/")
        return _relative(f"{inside}/README.md" if (ROOT / path).is_dir() else inside, page) + anchor
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{config.repo_url.rstrip('/')}/{kind}/main/{path}{anchor}"


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def command_line() -> str:
    """The reference of the command line, from the declarations of its commands."""
    import typer

    from stabwatch.cli.app import app

    parts = ["# Command line\n\nThe same as `stabwatch COMMAND --help`, from the same declarations.\n"]
    _describe(typer.main.get_command(app), "stabwatch", parts)
    return "\n".join(parts)


def _describe(command: Any, name: str, parts: list[str]) -> None:
    context = command.make_context(name, [], resilient_parsing=True)
    below = getattr(command, "commands", {})
    if not below or name == "stabwatch":
        parts.append(
            f"## {name}\n\n{_text(command.help)}\n\n{_usage(command, context)}\n\n{_parameters(command, context)}"
        )
    for child in below:
        _describe(below[child], f"{name} {child}", parts)


def _text(text: str | None) -> str:
    return re.sub(r"\n(?!\n)[ \t]*", "\n", text or "").strip()


def _usage(command: Any, context: Any) -> str:
    return f"    {context.command_path} {' '.join(command.collect_usage_pieces(context))}"


def _parameters(command: Any, context: Any) -> str:
    rows = [record for p in command.get_params(context) if (record := p.get_help_record(context))]
    lines = [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in rows]
    return "\n".join(["| option | what it does |", "|---|---|", *lines, ""]) if lines else ""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
