"""HTML of reports: one file, no scripts, no external resources, readable on a phone, in the look of the page at /ui."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from dami_router.shared.look import look_css

__all__ = ["NOTE_BREAK", "html_page", "html_picture", "html_table", "html_text"]

NOTE_BREAK = "; "
"""Where the last cell of a row may break; nothing else in a table wraps, except a long name in the first cell."""

_INTERVAL = re.compile(r"\S+ \[[^\]]*\]")
_STYLE = """
main { max-width: 62rem; margin: 1.5rem auto; padding: 1.75rem 2rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 0.75rem; }
h2 { margin-top: 2rem; }
span { white-space: nowrap; }
.answers { list-style: none; margin: 0 0 1.5rem; padding: 0; display: grid; gap: 0.5rem; }
.answers code { display: block; color: var(--soft); overflow-wrap: anywhere; }
.picture { overflow-x: auto; margin: 1rem 0; padding: 0.5rem; background: #fff; border: 1px solid var(--line);
  border-radius: 0.5rem; }
img { display: block; width: 100%; min-width: 30rem; max-width: 48rem; height: auto; margin: 0 auto; }
@media (max-width: 44rem) { main { margin: 0; padding: 1.25rem 1rem; border: 0; border-radius: 0; } }
@media print { main { border: 0; margin: 0; } .scroll, .picture { overflow: visible; } img { min-width: 0; } }
"""


def html_page(title: str, body: str) -> str:
    """Return a whole page; `title` is escaped here, `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{look_css()}{_STYLE}</style>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, note: bool = False) -> str:
    """Return a table of escaped cells that scrolls sideways where the screen is narrower.

    `label` names it for screen readers. With `note`, the last column is text, which may break at `NOTE_BREAK`.
    """
    lines = [_line("td", row, note) for row in rows]
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"<table><thead>{_line('th', header, note)}</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def html_text(text: str) -> str:
    """Return a paragraph; a figure and its interval, such as `+1.5 [-1.5, +4.5]`, stay on one line."""
    marked = _INTERVAL.sub(r"<span>\g<0></span>", escape(text))
    return f"<p>{marked}</p>"


def html_picture(data: bytes, kind: str, *, alt: str) -> str:
    """Return a picture that is part of the page; `kind` is its media type, such as `image/png`.

    Pictures are light in both themes; where the screen is too narrow for their labels, they scroll sideways.
    """
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    name = escape(alt)
    return (
        f'<div class="picture" role="region" aria-label="{name}" tabindex="0"><img alt="{name}" src="{source}"></div>'
    )


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
