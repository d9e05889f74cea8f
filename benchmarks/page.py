"""One HTML page, and the same as Markdown, of a report's sections: everything inline, nothing from the network."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from itertools import zip_longest
from pathlib import Path

HERE = Path(__file__).parent
DASH = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table shows in one place; `value` is the figure that it is rounded from, and sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; the first cell is its heading."""

    cells: tuple[Cell, ...]
    kind: str = ""
    """`ours`, `peer` or `part`, where it is a program."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be sorted by each column."""

    id: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    numeric: frozenset[str] = frozenset()
    """The columns of figures: aligned to the right, sorted by value."""
    folded: bool = False
    """Whether the page shows only the caption until it is asked for."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture whose figures are in a table of the same section."""

    caption: str
    wide: tuple[str, ...]
    """SVG; several stand side by side."""
    narrow: tuple[str, ...] = ()
    """For a phone; the same ones if empty."""
    names: tuple[str, ...] = ()
    """What the several ones are of."""
    legend: bool = True
    """Whether the marks of `charts` need to be explained."""


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that were measured in the same way."""

    id: str
    title: str
    how: str
    """How it was measured."""
    parts: tuple[Chart | Table, ...]


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One of the figures that come first."""

    figure: str
    meaning: str
    origin: str
    section: str
    """Where it comes from: a section's id."""
    value: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that is shown. In its texts, `code` stands between grave accents."""

    title: str
    result: str
    details: str
    key_figures: tuple[KeyFigure, ...]
    notes: tuple[str, ...]
    """What was left out, and what to heed."""
    sections: tuple[Section, ...]


def number(value: float | None, decimals: int, unit: str = "") -> Cell:
    """A figure, rounded; a dash for none."""
    if value is None:
        return Cell(DASH)
    return Cell(f"{value:,.{decimals}f}{unit}", value)


def as_html(report: Report) -> str:
    """Return the page."""
    style, script = ((HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    links = "".join(f'<li><a href="#{each.id}">{_prose(each.title)}</a></li>' for each in report.sections)
    notes = "".join(f"<li>{_prose(each)}</li>" for each in report.notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_prose(report.title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the figures</a>
<header>
<div class="bar"><h1>{_prose(report.title)}</h1><button id="theme" type="button" hidden></button></div>
<p class="result">{_prose(report.result)}</p>
<p class="details">{_prose(report.details)}</p>
<ul class="key">{"".join(map(_key_figure, report.key_figures))}</ul>
{f'<aside aria-label="Notes"><ul>{notes}</ul></aside>' if notes else ""}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main">
{"".join(map(_section, report.sections))}</main>
<script>{script}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _key_figure(each: KeyFigure) -> str:
    return (
        f'<li><strong data-value="{each.value!r}">{_prose(each.figure)}</strong>'
        f'<span>{_prose(each.meaning)}</span> <a href="#{each.section}">{_prose(each.origin)}</a></li>'
    )


def _section(section: Section) -> str:
    parts = "".join(_chart(part) if isinstance(part, Chart) else _table(part) for part in section.parts)
    return (
        f'<section id="{section.id}" aria-labelledby="{section.id}-title">\n'
        f'<h2 id="{section.id}-title">{_prose(section.title)}</h2>\n<p class="how">{_prose(section.how)}</p>\n'
        f"{parts}</section>\n"
    )


def _chart(chart: Chart) -> str:
    caption = _prose(chart.caption)
    drawn = ""
    for kind, pictures in (("wide" if chart.narrow else "", chart.wide), ("narrow", chart.narrow)):
        for svg, name in zip_longest(pictures, chart.names if pictures else (), fillvalue=""):
            label = escape(f"{name} {chart.caption} A table of this section holds the figures.".lstrip())
            drawn += svg.replace("<svg", f'<svg{_class(kind)} role="img" aria-label="{label}"', 1)
    legend = '<span class="legend"><i class="ours"></i>firstvec <i class="peer"></i>other programs</span>'
    return (
        f"<figure><figcaption>{caption}{legend if chart.legend else ''}</figcaption>"
        f'<div class="{"panels" if len(chart.wide) > 1 else "picture"}">{drawn}</div></figure>\n'
    )


def _table(table: Table) -> str:
    caption = _prose(table.caption)
    head = "".join(
        f'<th scope="col"{_number_class(name in table.numeric)}>{_prose(name)}</th>' for name in table.columns
    )
    body = "".join(f"<tr{_class(row.kind)}>{_cells(row, table)}</tr>\n" for row in table.rows)
    scroll = (
        f'<div class="scroll" role="region" aria-labelledby="{table.id}-caption" tabindex="0">'
        f'<table id="{table.id}"><caption id="{table.id}-caption"><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )
    return f"<details><summary>{caption}</summary>{scroll}</details>\n" if table.folded else scroll


def _cells(row: Row, table: Table) -> str:
    cells = []
    for index, (name, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
        tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
        value = "" if cell.value is None else f' data-value="{cell.value!r}"'
        text = _prose(cell.text)
        if index == 0:  # a long call may be broken at its argument
            text = re.sub(r"\((?!\))", "(<wbr>", text)
        cells.append(f"<{tag}{scope}{_number_class(name in table.numeric)}{value}>{text}</{tag}>")
    return "".join(cells)


def _number_class(numeric: bool) -> str:
    return _class("number" if numeric else "")


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _prose(text: str) -> str:
    """Escape a text, then mark its code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def as_markdown(report: Report) -> str:
    """Return the same figures as Markdown, without the pictures."""
    lines = [f"# {_plain(report.title)}", "", f"**{_plain(report.result)}** {_plain(report.details)}", ""]
    lines += [
        f"- **{_plain(each.figure)}** {_plain(each.meaning)} ({_plain(each.origin)})" for each in report.key_figures
    ]
    lines.append("")
    if report.notes:
        lines += [*(f"> - {_plain(each)}" for each in report.notes), ""]
    for section in report.sections:
        lines += [f"## {_plain(section.title)}", "", _plain(section.how), ""]
        for part in section.parts:
            if isinstance(part, Table):
                lines += [f"### {_plain(part.caption)}", "", *_rows(part), ""]
    return "\n".join(lines)


def _rows(table: Table) -> Iterable[str]:
    yield _line(table.columns)
    yield "|" + "".join("---:|" if name in table.numeric else "---|" for name in table.columns)
    for row in table.rows:
        yield _line([cell.text for cell in row.cells])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Escape what Markdown would take for its own, but for code between grave accents, and join the lines."""
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0:  # one grave accent without its other
        return _escaped("`".join(parts))
    parts[::2] = map(_escaped, parts[::2])
    parts[1::2] = (part.replace("|", "\\|") for part in parts[1::2])
    return "`".join(parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)
