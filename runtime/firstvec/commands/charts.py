"""Charts of the page of `firstvec explain --html`: tables with a picture in each row, over a common scale."""

from __future__ import annotations

from html import escape
from math import floor, log10

from firstvec.errors import printable
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def text(value: object) -> str:
    """Return text that HTML shows as it is. Names come from a manifest, and nobody vouches for them."""
    return escape(printable(str(value)))


class Scale(Record):
    """What the left end and the right end of a chart's pictures mean."""

    low: float = 0.0
    high: float

    def at(self, value: float) -> float:
        """Return where a value lies, in percent of the width."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self) -> list[float]:
        """Return round numbers of the scale: two at least, and six at most."""
        smallest = (self.high - self.low) / 5
        unit = 10.0 ** floor(log10(smallest))
        step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= smallest * (1 - 1e-9))
        first, last = -floor(-self.low / step + 1e-6), floor(self.high / step + 1e-6)
        return [round(number * step, 10) for number in range(first, last + 1)]


class Row(Record):
    """A row of a chart."""

    name: str
    picture: str
    """SVG, whose horizontal places are percents of a scale."""
    number: str
    words: str = ""
    """What the picture shows and the number does not, for those who do not see the picture."""
    kind: str = ""
    """Class of the style."""


def chart(title: str, unit: str, scale: Scale, rows: Iterable[Row]) -> str:
    """Return a table with a picture in each row.

    Args:
        title: what it shows, for those who do not see it.
        unit: of the numbers, which is the heading of their column.
        scale: of the pictures.
        rows: from top to bottom.
    """
    ticks = [(tick, scale.at(tick)) for tick in scale.ticks()]
    grid = "".join(line("grid", at) for _, at in ticks)
    body = "".join(
        f'<tr class="{row.kind}"><th scope="row" class="name">{text(row.name)}</th><td class="picture">'
        f'<svg aria-hidden="true">{grid}{row.picture}</svg><span class="hidden">{text(row.words)}</span></td>'
        f'<td class="number">{text(row.number)}</td></tr>\n'
        for row in rows
    )
    return f"""<table class="chart"><caption class="hidden">{text(title)}</caption>
<thead><tr><th scope="col" class="name"><span class="hidden">name</span></th>
<th scope="col" class="picture"><svg aria-hidden="true">{_labels(ticks)}</svg><span class="hidden">picture</span></th>
<th scope="col" class="number">{text(unit)}</th></tr></thead>
<tbody>{body}</tbody></table>"""


def _labels(ticks: list[tuple[float, float]]) -> str:
    """Return the numbers of the scale, above their lines. They stay within a picture of 120 pixels, as on a phone."""
    names = [f"{tick:g}" for tick, _ in ticks]
    is_crowded = sum(map(len, names)) > 12  # then a phone shows every second one
    labels = ""
    for place, (name, (_, at)) in enumerate(zip(names, ticks, strict=True)):
        half = 2.6 * len(name)  # percent of the width
        anchor = "start" if at < half else "middle" if at < 100 - half else "end"
        kind = "second" if place % 2 and is_crowded else ""
        labels += f'<text class="{kind}" x="{at}%" y="13" text-anchor="{anchor}">{name}</text>'
    return labels


def line(kind: str, at: float, top: int = 0, bottom: int = 100) -> str:
    """Return a vertical line. All places are percents of the picture."""
    return f'<line class="{kind}" x1="{at}%" x2="{at}%" y1="{top}%" y2="{bottom}%"/>'


def bar(kind: str, begin: float, end: float) -> str:
    """Return a horizontal bar, from one place to another, in percent of the width."""
    return f'<rect class="bar {kind}" x="{begin}%" width="{round(end - begin, 2)}%" y="50%" height="12"/>'


def dot(kind: str, at: float) -> str:
    """Return a dot, or a ring, at a place in percent of the width."""
    return f'<circle class="{kind}" cx="{at}%" cy="50%" r="{4 if kind == "ring" else 5}"/>'


def legend(symbols: dict[str, str]) -> str:
    """Return a list of names, each with its symbol: SVG of `line`, `dot` or `bar`."""
    rows = "".join(f'<li><svg aria-hidden="true">{svg}</svg>{text(name)}</li>' for name, svg in symbols.items())
    return f'<ul class="legend">{rows}</ul>'


def facts(values: dict[str, str]) -> str:
    """Return a list of names and values, without the empty ones."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in values.items() if value)
    return f'<dl class="facts">{rows}</dl>'
