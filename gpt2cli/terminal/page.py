"""HTML pages in one file: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from gpt2cli.terminal.heat import COLOURS, INK, Span
from gpt2cli.text.sanitize import one_line, sanitize
from gpt2cli.text.visible import visible

_STYLE = """
:root { color-scheme: light dark; --dim: #595959; --line: #ccc; }
@media (prefers-color-scheme: dark) { :root { --dim: #a8a8a8; --line: #444; } }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace;
  line-height: 2; }
.text span { border-radius: 2px; }
.text span[data-level]::after { content: attr(data-level); font-size: .6em; vertical-align: sub;
  opacity: .75; }
.unscored, .dim, .same { color: var(--dim); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; }
td { white-space: pre-wrap; vertical-align: top; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.5rem; }
.columns p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } h3 { font-size: 1rem; margin: 0; }
""" + "".join(f".l{n} {{ background: {c}; color: {INK}; }}\n" for n, c in enumerate(COLOURS) if c)

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="generator" content="gpt2cli">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}</body>
</html>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A page of ``parts``, which are HTML already."""
    return _PAGE.format(title=_escaped(one_line(title)), style=_STYLE, body="".join(f"{p}\n" for p in parts))


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; ``kind`` is a class of the page, such as ``dim``."""
    return f"<p{_class(kind)}>{_escaped(sanitize(text))}</p>"


def section(title: str) -> str:
    """The heading of what follows."""
    return f"<h2>{_escaped(one_line(title))}</h2>"


def heat(spans: Sequence[tuple[Span, str]]) -> str:
    """A coloured text; each span with what is shown where the pointer rests on it."""
    parts = []
    for span, note in spans:
        text = _escaped(visible(span.text)) + "\n" * span.text.count("\n")
        title = f' title="{_escaped(visible(note))}"' if note else ""
        if span.level is None:
            parts.append(f'<span class="unscored"{title}>{text}</span>')
        else:
            digit = f' data-level="{span.level}"' if span.level else ""
            parts.append(f'<span class="l{span.level}"{digit}{title}>{text}</span>')
    return f'<div class="text">{"".join(parts)}</div>'


def legend(low: str, high: str) -> str:
    """The scale of levels."""
    swatches = "".join(f'<span class="l{level}">&nbsp;{level}&nbsp;</span>' for level in range(len(COLOURS)))
    return f'<p class="dim">{_escaped(low)} {swatches} {_escaped(high)}</p>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table; the columns ``right`` are aligned to the right."""

    def row(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{_class('n' if number in right else '')}>{_escaped(visible(cell))}</{tag}>"
            for number, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>\n" for cells in rows)
    return f"<table>\n<tr>{row('th', header)}</tr>\n{body}</table>"


def columns(texts: Iterable[tuple[str, str, int, Sequence[str]]]) -> str:
    """Texts beside each other: title, text, the number of characters it shares with its reference, and
    remarks below.
    """
    parts = []
    for title, whole, shared, remarks in texts:
        same, own = _escaped(sanitize(whole[:shared])), _escaped(sanitize(whole[shared:]))
        below = "".join(paragraph(line, "dim") for line in remarks)
        text = f'<p><span class="same">{same}</span>{own}</p>'
        parts.append(f"<div><h3>{_escaped(one_line(title))}</h3>{text}{below}</div>")
    return f'<div class="columns">{"".join(parts)}</div>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _escaped(text: str) -> str:
    return escape(text, quote=True)
