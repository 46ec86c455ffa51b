"""Pieces of HTML. Every text from a log goes through `safe`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from stabwatch.alerts import Cause
from stabwatch.cli.render.text import clean

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--faint:#667080;--edge:#dde1e6;--card:#f6f7f9;--line:#2563c9;
--critical:#c62828;--warning:#b26a00;--info:#2563c9;--calm:#2e7d32}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e4e7eb;--faint:#98a2b0;--edge:#30363d;--card:#1c2026;
--line:#6ea8fe;--critical:#ff6b6b;--warning:#f0a93b;--info:#6ea8fe;--calm:#66bb6a}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:auto;padding:24px 16px 64px;overflow-wrap:anywhere}
h1{font-size:1rem;color:var(--faint);font-weight:500;margin:0 0 12px}h2{font-size:1.15rem;margin:36px 0 10px}
h3{font-size:1rem;margin:20px 0 4px}.faint{color:var(--faint);font-size:.875rem}
.verdict{font-size:1.2rem;padding:14px 18px;border-left:5px solid;background:var(--card);border-radius:4px;margin:0}
.critical{color:var(--critical)}.warning{color:var(--warning)}.info{color:var(--info)}.calm{color:var(--calm)}
.verdict span{color:var(--fg)}ul{margin:6px 0;padding-left:22px}svg{display:block;width:100%;height:auto}
.curve{fill:none;stroke:var(--line);stroke-width:1.6}svg text{fill:var(--faint);font-size:12px}.wide{overflow-x:auto}
.chart{overflow:visible}code{font-size:.92em;background:var(--card);border-radius:3px;padding:0 .2em}
table{border-collapse:collapse;font-size:.875rem;width:100%;overflow-wrap:normal}
th{color:var(--faint);font-weight:500}th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--edge);
vertical-align:top;font-variant-numeric:tabular-nums}a{color:var(--line)}
.events td:last-child{min-width:20em}.events b{font-weight:600}
@media(max-width:600px){.chart text{font-size:18px}.map{min-width:640px}.events thead{display:none}
.events tr{display:block;padding:8px 0;border-bottom:1px solid var(--edge)}.events td{display:inline;border:0;padding:0}
.events td:not(:last-child)::after{content:" "}.events td:last-child{display:block;min-width:0}
.events td[data-label]::before{content:attr(data-label) " ";color:var(--faint)}}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def safe(text: object) -> str:
    """Untrusted text as HTML text, without control characters and escape sequences."""
    return html.escape(clean(text))


def prose(text: object) -> str:
    """The same, of sentences in which `this` is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", safe(text))


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; nothing in it can run or load."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def verdict(text: str, severity: str) -> str:
    """The verdict at the top of the page."""
    return f'<p class="verdict {safe(severity)}"><span>{prose(text)}</span></p>'


def section(title: str, body: str) -> str:
    """A heading and its body; nothing without a body."""
    return f"<section><h2>{safe(title)}</h2>{body}</section>" if body else ""


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{prose(line)}</li>' for line in lines)}</ul>" if lines else ""


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways on a narrow screen."""
    if not rows:
        return ""
    head = "".join(f"<th>{safe(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{safe(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def events(headings: Sequence[str], rows: Sequence[tuple[str, Sequence[object]]]) -> str:
    """A table of incidents; a list on a narrow screen. rows: severity and cells; the third cell has the colour of the
    severity."""
    if not rows:
        return ""
    head = "".join(f"<th>{safe(heading)}</th>" for heading in headings)
    body = []
    for severity, cells in rows:
        made = []
        for place, (heading, cell) in enumerate(zip(headings, cells, strict=True)):
            label = f' data-label="{safe(heading)}"' if place in (0, 1, 3) else ""
            text = f'<b class="{safe(severity)}">{safe(cell)}</b>' if place == 2 else prose(cell)
            made.append(f"<td{label}>{text}</td>")
        body.append(f"<tr>{''.join(made)}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide events">{table}</div>'


def causes(found: Sequence[tuple[Cause, str]]) -> str:
    """Causes with since when they hold, their evidence and remedies."""
    parts = []
    for place, (cause, since) in enumerate(found, 1):
        parts.append(f"<h3>{place}. {safe(cause.title)}</h3>")
        parts.append(f'<p class="faint">{safe(since)}</p>')
        parts.append(bullets(cause.evidence))
        if cause.remedy:
            parts.append(f"<strong>What to do</strong>{bullets(cause.remedy)}")
        if cause.runbook_url:
            parts.append(f'<a href="{html.escape(cause.runbook_url)}">Runbook</a>')
    return "".join(parts)
