"""HTML of reports: one file, no scripts, no external resources, readable on a phone."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

__all__ = ["NOTE_BREAK", "html_page", "html_picture", "html_table", "html_text"]

NOTE_BREAK = "; "
"""Where the last cell of a row may break; nothing else in a table wraps, except a long name in the first cell."""

_INTERVAL = re.compile(r"\S+ \[[^\]]*\]")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1d2733;"
    "background:#fff}"
    ".scroll{overflow-x:auto}"
    "table{border-collapse:collapse;font-size:15px;font-variant-numeric:tabular-nums}"
    "td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #dde3ea;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:7rem;"
    "max-width:16rem;position:sticky;left:0;background:#fff;padding-left:0}"
    "td.note,th.note{text-align:left;white-space:normal;min-width:12rem}"
    "span{white-space:nowrap}"
    "img{max-width:100%;height:auto}h2{margin-top:2rem}"
    "@media(max-width:30rem){table{font-size:14px}td,th{padding:.25rem .45rem}}"
    "pre{background:#f4f6f8;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}"
)


def html_page(title: str, body: str) -> str:
    """Return a whole page; `title` is escaped here, `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, note: bool = False) -> str:
    """Return a table of escaped cells that scrolls sideways where the screen is narrower.

    `label` names it for screen readers. With `note`, the last column is text, which may break at `NOTE_BREAK`.
    """
    lines = [_line("th", header, note), *(_line("td", row, note) for row in rows)]
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"<table>{''.join(lines)}</table></div>"
    )


def html_text(text: str) -> str:
    """Return a paragraph; a figure and its interval, such as `+1.5 [-1.5, +4.5]`, stay on one line."""
    marked = _INTERVAL.sub(r"<span>\g<0></span>", escape(text))
    return f"<p>{marked}</p>"


def html_picture(data: bytes, kind: str, *, alt: str) -> str:
    """Return a picture that is part of the page; `kind` is its media type, such as `image/png`."""
    return f'<img alt="{escape(alt)}" src="data:{kind};base64,{base64.b64encode(data).decode()}">'


def _line(tag: str, cells: Sequence[str], note: bool) -> str:
    plain, notes = (cells[:-1], cells[-1:]) if note else (cells, [])
    return (
        "<tr>"
        + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in plain)
        + "".join(f'<{tag} class="note">{_parts(cell)}</{tag}>' for cell in notes)
        + "</tr>"
    )


def _parts(cell: str) -> str:
    return NOTE_BREAK.join(f"<span>{escape(part)}</span>" for part in cell.split(NOTE_BREAK)) if cell else ""
