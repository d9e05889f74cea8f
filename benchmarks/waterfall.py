"""A picture of where the milliseconds of each program go, one row a stage, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Stages = Sequence[tuple[str, float, float]]
"""Name, begin and end in milliseconds from exec."""

WIDTH, LEFT, ROW, GAP = 980, 20, 15, 34
NARROW, NARROW_ROW = 360, 25
"""On a phone a stage's label stands above its bar: a row is higher, and no room is left beside the bars."""
LETTER = 5.8
"""About the width of a letter, where text must fit."""
FAR = 1000.0
"""A program of more milliseconds has a scale of its own."""
KINDS = {
    # words in a stage's name → what kind of work it is
    "interpreter": "process",
    "exit": "process",
    "import": "import",
    "onnxruntime": "engine",
    "session": "engine",
    "engine": "engine",
    "load": "engine",
    "compile": "engine",
    "run": "run",
    "encode": "run",
}
LEGEND = {
    "process": "process",
    "import": "imports",
    "files": "files, tokenizer",
    "engine": "engine, model",
    "run": "first vector",
}
STYLE = """
svg { background: #fff; font: 11px system-ui, sans-serif }
text { fill: #222 } .name { font-weight: 600; font-size: 13px } .tick { fill: #777 } .grid { stroke: #ddd }
.process { fill: #b0b4ba } .import { fill: #e0a33e } .engine { fill: #4c78c9 } .run { fill: #3f9f6b }
.files { fill: #9a6fc0 }
@media (prefers-color-scheme: dark) {
  svg { background: #16181c } text { fill: #e6e6e6 } .tick { fill: #999 } .grid { stroke: #333 }
}
"""


def draw(programs: Mapping[str, tuple[float, Stages]], *, style: str = STYLE, narrow: bool = False) -> str:
    """Return the picture: program → its milliseconds and its stages. Those of a second and more come last.

    A page that holds the picture gives an empty ``style``, and has rules of its own for the classes.
    """
    body: list[str] = []
    width = NARROW if narrow else WIDTH
    in_a_row = width // 130
    for index, (kind, text) in enumerate(LEGEND.items()):
        x, y = _left(narrow) + 130 * (index % in_a_row), 8 + 18 * (index // in_a_row)
        body.append(f'<rect class="{kind}" x="{x}" y="{y}" width="11" height="11"/>')
        body.append(f'<text x="{x + 16}" y="{y + 10}">{text}</text>')
    top = 30.0 + 18 * ((len(LEGEND) - 1) // in_a_row)
    near = {name: value for name, value in programs.items() if value[0] < FAR}
    far = {name: value for name, value in programs.items() if value[0] >= FAR}
    for group in (near, far):
        if group:
            top = _panel(group, top, body, narrow=narrow)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top:.0f}" width="{width}">\n'
        + (f"<style>{style}</style>\n" if style else "")
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _panel(programs: Mapping[str, tuple[float, Stages]], top: float, body: list[str], *, narrow: bool) -> float:
    """Programs on one scale; returns where the next panel begins."""
    longest = max(ms for ms, _ in programs.values())
    left, row = _left(narrow), NARROW_ROW if narrow else ROW
    room = NARROW - 2 * left if narrow else WIDTH - 2 * left - 190  # for the last labels
    scale = room / longest
    height = sum(GAP + row * len(stages) for _, stages in programs.values())
    step = _step(longest, 6 if narrow else 12)
    for index in range(int(longest / step) + 1):
        x = left + index * step * scale
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 14:.0f}" y2="{top + height:.0f}"/>')
        if x + 2 + LETTER * len(label := f"{index * step:g} ms") <= (NARROW if narrow else WIDTH):
            body.append(f'<text class="tick" x="{x + 2:.1f}" y="{top + 12:.0f}">{label}</text>')
    y = top + 14
    for name, (ms, stages) in programs.items():
        y += GAP - 12
        body.append(f'<text class="name" x="{left}" y="{y:.0f}">{escape(name)}: {ms:.0f} ms</text>')
        y += 5
        for stage, begin, end in sorted(stages, key=lambda each: each[1]):
            x, width = left + begin * scale, max(0.8, (end - begin) * scale)
            label = f"{stage}, {end - begin:.1f}"
            if narrow:
                bar, thick = y + 15, row - 18
                text_x, text_y = max(left, min(x, NARROW - left - LETTER * len(label))), y + 12
            else:
                bar, thick = y, row - 3
                text_x, text_y = x + width + 4, y + 10
            body.append(
                f'<rect class="{_kind(stage)}" x="{x:.1f}" y="{bar:.0f}" width="{width:.1f}" height="{thick}">'
                f"<title>{escape(label)} ms, from {begin:.1f} to {end:.1f}</title></rect>"
                f'<text x="{text_x:.1f}" y="{text_y:.0f}">{escape(label)}</text>'
            )
            y += row
        y += 7
    return y + GAP


def _left(narrow: bool) -> int:
    return LEFT // 2 if narrow else LEFT


def _kind(stage: str) -> str:
    words = stage.replace(",", " ").replace(":", " ").split()
    return next((kind for word, kind in KINDS.items() if word in words), "files")


def _step(longest: float, most: int) -> float:
    """A round distance between grid lines, for at most so many of them."""
    round_ones = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 1e5)
    return next((step for step in round_ones if longest / step <= most), longest)
