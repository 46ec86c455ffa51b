"""A runbook as a page: the same text as in the documentation, without any other server."""

from __future__ import annotations

import html
import re
from functools import lru_cache

from markdown_it import MarkdownIt

from stabwatch.alerts.runbooks import runbook, runbook_names

_DOCS = "https://github.com/stabwatch/stabwatch/blob/main/docs"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · stabwatch</title>
<link rel="stylesheet" href="../page.css">
</head>
<body class="prose">
<nav><a href="../">Back</a> · <a href="./">All runbooks</a></nav>
<main>
{body}
</main>
</body>
</html>
"""


@lru_cache(maxsize=128)
def runbook_page(name: str) -> bytes:
    """The page of a runbook, or the list of all for ''. Raises RuleError."""
    if not name:
        items = "".join(f'<li><a href="{known}">{known}</a></li>' for known in runbook_names())
        return _page("Runbooks", f"<h1>Runbooks</h1><ul>{items}</ul>")
    text = re.sub(r"\]\(([^)\s]+)\)", _linked, runbook(name))
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    return _page(name, markdown.render(text))


def _page(title: str, body: str) -> bytes:
    return _PAGE.format(title=html.escape(title), body=body).encode()


def _linked(found: re.Match[str]) -> str:
    """A link to another runbook stays here; one to another page of the documentation leads to the site."""
    target, known = found[1], set(runbook_names())
    page, mark, anchor = target.partition("#")
    if "://" in target or not page.endswith(".md"):
        return found[0]
    name = page.removesuffix(".md")
    if name in known:
        return f"]({name}{mark}{anchor})"
    inside = page.removeprefix("../") if page.startswith("../") else f"runbooks/{page}"
    return f"]({_DOCS}/{inside}{mark}{anchor})"
