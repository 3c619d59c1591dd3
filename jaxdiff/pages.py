"""Parts of an HTML page that needs no other file: its style, escaped text, tables, and matplotlib's SVG in its colours.

A page runs no script, and its own policy forbids them. Every text that came from a person or a file is escaped, in the
tables and in the pictures.
"""

import html
import io
import warnings
from collections.abc import Sequence
from typing import Any

INK, ACCENT, SOFT, BAD = "#010203", "#040506", "#070809", "#0a0b0c"  # stand for the page's colours in a picture
_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", SOFT: "var(--soft)", BAD: "var(--bad)"}
SERIES = ("#2f7ed8", "#d9822b", "#2e9e6b", "#c2477f", "#8a63d2", "#a08a1c", "#3aa3b8")  # on light and on dark

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --paper: #fbfbfa; --soft: #606a73; --line: #d9dde1;
  --accent: #0b62c4; --band: #f0f2f4; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --paper: #14171a; --soft: #8c959e; --line: #343a40;
  --accent: #6db3ff; --band: #1d2226; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 0.25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
.facts { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 1rem 0; padding: 0; list-style: none; }
.facts b { display: block; font-size: 1.5rem; line-height: 1.2; }
.facts span, .small, figcaption { color: var(--soft); font-size: 0.9rem; }
.notes { background: var(--band); border-left: 3px solid var(--accent); margin: 1rem 0;
  padding: 0.6rem 1rem 0.6rem 2rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; overflow-wrap: normal; }
td { white-space: nowrap; }
th.text, td.text { text-align: left; min-width: 7rem; white-space: normal; }
tbody tr:hover { background: var(--band); }
.out { color: var(--bad); }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figure svg text { font-family: system-ui, sans-serif !important; }
details summary { cursor: pointer; color: var(--accent); }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } tr, figure { break-inside: avoid; } }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, body: str, *, style: str = "", sounds: bool = False) -> str:
    """A whole page of a title, which is escaped, and a body, which is not; `style` joins the style of all pages, and
    `sounds` allows those that the page holds."""
    policy = f"{_POLICY}; media-src data:" if sounds else _POLICY
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heads(numbers: Sequence[tuple[str, str]]) -> str:
    """The large facts below a title: values and what they are."""
    items = "".join(f"<li><b>{text(value)}</b><span>{text(what)}</span></li>" for value, what in numbers)
    return f'<ul class="facts">{items}</ul>'


def notes(sentences: Sequence[str]) -> str:
    """What a reader should know first; nothing where there is none."""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{items}</ul>' if items else ""


def section(heading: str, body: str) -> str:
    """A part of a page; both texts are HTML."""
    return f"<section><h2>{heading}</h2>{body}</section>"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1, marked: Sequence[bool] | None = None
) -> str:
    """A table whose first `texts` columns are text and the others numbers; marked rows are coloured."""
    kinds = [' class="text"' if i < texts else "" for i in range(len(columns))]
    head = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for kind, name in zip(kinds, columns, strict=True))
    marks = marked or [False] * len(rows)
    body = ""
    for mark, row in zip(marks, rows, strict=True):
        cells = "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        body += f'<tr class="out">{cells}</tr>' if mark else f"<tr>{cells}</tr>"
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(figure: Any, label: str, caption: str) -> str:
    """A figure as SVG inside the page: letters stay letters, and the inks become the page's colours."""
    import matplotlib

    file = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": label}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that the browser has, and matplotlib lacks
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    drawn = file.getvalue()
    svg = drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{text(label)}"', 1)
    for ink, colour in _COLOURS.items():
        svg = svg.replace(ink, colour)
    return f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>"


def text(text: str) -> str:
    """A text as it may stand in HTML, between tags or as an attribute."""
    return html.escape(clean(text), quote=True)


def clean(text: str) -> str:
    """A text whose control characters, which could hide or turn what is around them, are replaced."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
