"""The report's charts as SVG without colours: the page's style gives them, by the class of a mark.

Marks differ in shape, too: a circle is firstvec, a square another program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDE, NARROW = 980, 360
"""Widths in pixels. In a narrow chart the names stand above the marks."""
NAMES = 262
"""What the names take of a wide one."""
FIGURES = 150
"""What the figures take behind the last mark of a wide one."""
PANEL_WIDTH, PANEL_HEIGHT = 340, 270
NINES = (0.0, 0.9, 0.99, 0.999, 0.9999, 0.99999)


@dataclass(frozen=True, slots=True)
class Mark:
    """A row of `ranges` or `bars`: a median and where its samples lie."""

    name: str
    kind: str
    low: float
    value: float
    high: float
    label: str


@dataclass(frozen=True, slots=True)
class Point:
    """A point of `panel`."""

    name: str
    kind: str
    speed: float
    cosine: float


def ranges(marks: Sequence[Mark], line: tuple[str, float] | None = None, *, narrow: bool = False) -> str:
    """Medians with their ranges on a logarithmic scale of milliseconds; ``line`` is a named one to compare with."""
    low = min([each.low for each in marks] + ([line[1]] if line else [])) / 1.1
    high = max(each.high for each in marks) * 1.1

    def share(value: float) -> float:
        return math.log(value / low) / math.log(high / low)

    ticks = _ticks(low, high, (1,) if narrow else (1, 2, 5))
    ticks = ticks if len(ticks) > 1 else _ticks(low, high, range(1, 10))
    return _rows(marks, [(share(value), text) for value, text in ticks], share, line, narrow=narrow)


def _ticks(low: float, high: float, digits: Iterable[int]) -> list[tuple[float, str]]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = (digit * 10.0**power for power in powers for digit in digits)
    return [(each, f"{each:g} ms" if each < 1000 else f"{each / 1000:g} s") for each in values if low <= each <= high]


def bars(marks: Sequence[Mark], unit: str, *, narrow: bool = False) -> str:
    """Medians as bars from zero."""
    high = max(each.value for each in marks) or 1.0
    step = 10.0 ** math.floor(math.log10(high))
    step = next(part for part in (step / 5, step / 2, step, 2 * step, 5 * step) if high / part <= (4 if narrow else 8))
    ticks = [(index * step / high, f"{index * step:g} {unit}") for index in range(int(high / step) + 1)]
    return _rows(marks, ticks, lambda value: value / high, None, narrow=narrow, from_zero=True)


def _rows(
    marks: Sequence[Mark],
    ticks: Iterable[tuple[float, str]],
    share: Callable[[float], float],
    line: tuple[str, float] | None,
    *,
    narrow: bool,
    from_zero: bool = False,
) -> str:
    width, left, right = (NARROW, 8, 8) if narrow else (WIDE, NAMES, FIGURES)
    row, top = (38 if narrow else 24), (40 if line else 24)
    room, bottom = width - left - right, top + row * len(marks)
    body = []
    for at, text in ticks:
        x = left + at * room
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        body.append(f'<text class="tick" {_anchor(x, text, width)} y="{top - 6}">{escape(text)}</text>')
    if line:
        x = left + share(line[1]) * room
        body.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 22}" y2="{bottom}"/>')
        body.append(f'<text class="lead" {_anchor(x, line[0], width)} y="{top - 26}">{escape(line[0])}</text>')
    for index, mark in enumerate(marks):
        y = top + row * index + (27 if narrow else 12)
        begin, middle, end = (left + share(value) * room for value in (mark.low, mark.value, mark.high))
        name = escape(mark.name)
        if narrow:
            body.append(f'<text class="name" x="{left}" y="{y - 10}">{name}</text>')
            body.append(f'<text class="figure" x="{width - right}" y="{y - 10}" text-anchor="end">{mark.label}</text>')
        else:
            body.append(f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">{name}</text>')
            after = (middle if from_zero else end) + 10
            body.append(f'<text class="figure" x="{after:.1f}" y="{y + 4}">{mark.label}</text>')
        if from_zero:
            body.append(_rectangle(mark.kind, left, y - 6, max(1.0, middle - left), 12))
        else:
            body.append(f'<line class="range {mark.kind}" x1="{begin:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>')
            body.append(_symbol(mark.kind, middle, y))
    return _svg(width, bottom + 8, body)


def panel(title: str, points: Sequence[Point]) -> str:
    """Speed to the right, the worst cosine upwards on a scale of nines: each line is a tenth of the error below."""
    left, right, top, bottom = 66, 14, 42, 40
    room, height = PANEL_WIDTH - left - right, PANEL_HEIGHT - top - bottom
    fastest = 1.06 * max(each.speed for each in points) or 1.0
    lowest = next((nine for nine in reversed(NINES[:-2]) if nine <= min(each.cosine for each in points)), NINES[0])
    nines = NINES[NINES.index(lowest) :]

    def place(point: Point) -> tuple[float, float]:
        return left + point.speed / fastest * room, top + (1 - share(point.cosine)) * height

    def share(cosine: float) -> float:
        error = min(max(1 - cosine, 1 - NINES[-1]), 1 - nines[0])
        return math.log(error / (1 - nines[0])) / math.log((1 - NINES[-1]) / (1 - nines[0]))

    body = [f'<text class="name" x="8" y="18">{escape(title)}</text>']
    for nine in nines:
        y = top + (1 - share(nine)) * height
        body.append(f'<line class="grid" x1="{left}" x2="{PANEL_WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = f"{nine:g}" if nine != NINES[-1] else f"≥ {nine:g}"
        body.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    step = 10.0 ** math.floor(math.log10(fastest))
    step = next(part for part in (step / 5, step / 2, step, 2 * step) if fastest / part <= 5)
    for index in range(int(fastest / step) + 1):
        x = left + index * step / fastest * room
        y = PANEL_HEIGHT - bottom
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y}"/>')
        body.append(f'<text class="tick" x="{x:.1f}" y="{y + 15}" text-anchor="middle">{index * step:,g}</text>')
    body.append(
        f'<text class="tick" x="{PANEL_WIDTH - right}" y="{PANEL_HEIGHT - 8}" text-anchor="end">'
        "texts per second →</text>"
    )
    places = [place(each) for each in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    leaders, symbols, labels = [], [], []
    for point, (x, y) in sorted(zip(points, places, strict=True), key=lambda each: (each[1][1], -each[1][0])):
        box, apart = _free(x, y, _width(point.name), taken)
        taken.append(box)
        if apart:
            to_x, to_y = min(max(x, box[0]), box[2]), min(max(y, box[1] + 2), box[3] - 2)
            leaders.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>')
        symbols.append((point.kind == "ours", _symbol(point.kind, x, y)))
        labels.append(f'<text class="figure" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(point.name)}</text>')
    body += [*leaders, *(symbol for _, symbol in sorted(symbols)), *labels]
    return _svg(PANEL_WIDTH, PANEL_HEIGHT, body)


Box = tuple[float, float, float, float]


def _free(x: float, y: float, width: float, taken: Sequence[Box]) -> tuple[Box, bool]:
    """Where a label of that width meets no other, and whether it needs a line to its point."""
    for down in (0, 15, -15, 30, -30, 45, -45, 60, 75, 90, 105):
        for left in (x + 9, x - 9 - width, *((x - width / 2,) if down else ())):
            box = (left, y + down - 7, left + width, y + down + 7)
            inside = left >= 68 and left + width <= PANEL_WIDTH - 2 and box[1] >= 24 and box[3] <= PANEL_HEIGHT - 33
            if inside and not any(
                box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
            ):
                return box, down != 0
    left = min(x + 9, PANEL_WIDTH - width)
    return (left, y - 7, left + width, y + 7), False


def _width(text: str) -> float:
    """About the width of a label, in a wide font."""
    return sum(3.8 if letter in "fijlrt.,:;|' " else 8.0 if letter.isupper() else 6.7 for letter in text)


def _symbol(kind: str, x: float, y: float) -> str:
    if kind == "ours":
        return f'<circle class="mark ours" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    return _rectangle(f"mark {kind}", x - 4.5, y - 4.5, 9, 9)


def _rectangle(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _anchor(x: float, text: str, width: int) -> str:
    """Centre a label at x, as far as it fits into the picture."""
    half = _width(text) / 2
    return f'x="{min(max(x, half + 2), width - half - 2):.1f}" text-anchor="middle"'


def _svg(width: int, height: float, body: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}">'
    return "\n".join([head, *body, "</svg>\n"])
