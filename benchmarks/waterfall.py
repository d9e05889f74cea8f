"""A picture of where the milliseconds of each program go, one row a stage, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Stages = Sequence[tuple[str, float, float]]
"""Name, begin and end in milliseconds from exec."""

WIDTH, LEFT, ROW, GAP = 980, 20, 15, 34
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
STYLE = """
svg { background: #fff; font: 11px system-ui, sans-serif }
text { fill: #222 } .name { font-weight: 600; font-size: 13px } .tick { fill: #777 } .grid { stroke: #ddd }
.process { fill: #b0b4ba } .import { fill: #e0a33e } .engine { fill: #4c78c9 } .run { fill: #3f9f6b }
.files { fill: #9a6fc0 }
@media (prefers-color-scheme: dark) {
  svg { background: #16181c } text { fill: #e6e6e6 } .tick { fill: #999 } .grid { stroke: #333 }
}
"""


def draw(programs: Mapping[str, tuple[float, Stages]]) -> str:
    """Return the picture: program → its milliseconds and its stages. Those of a second and more come last."""
    body: list[str] = []
    top = 30.0
    near = {name: value for name, value in programs.items() if value[0] < FAR}
    far = {name: value for name, value in programs.items() if value[0] >= FAR}
    for group in (near, far):
        if group:
            top = _panel(group, top, body)
    legend = "".join(
        f'<rect class="{kind}" x="{LEFT + 130 * index}" y="8" width="11" height="11"/>'
        f'<text x="{LEFT + 130 * index + 16}" y="18">{text}</text>'
        for index, (kind, text) in enumerate(
            (
                ("process", "process"),
                ("import", "imports"),
                ("files", "files, tokenizer"),
                ("engine", "engine, model"),
                ("run", "first vector"),
            )
        )
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" width="{WIDTH}">\n'
        f"<style>{STYLE}</style>\n{legend}\n" + "\n".join(body) + "\n</svg>\n"
    )


def _panel(programs: Mapping[str, tuple[float, Stages]], top: float, body: list[str]) -> float:
    """Programs on one scale; returns where the next panel begins."""
    longest = max(ms for ms, _ in programs.values())
    scale = (WIDTH - 2 * LEFT - 190) / longest  # room for the last labels
    height = sum(GAP + ROW * len(stages) for _, stages in programs.values())
    step = _step(longest)
    for index in range(int(longest / step) + 1):
        x = LEFT + index * step * scale
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 14:.0f}" y2="{top + height:.0f}"/>')
        body.append(f'<text class="tick" x="{x + 2:.1f}" y="{top + 12:.0f}">{index * step:g} ms</text>')
    y = top + 14
    for name, (ms, stages) in programs.items():
        y += GAP - 12
        body.append(f'<text class="name" x="{LEFT}" y="{y:.0f}">{escape(name)}: {ms:.0f} ms</text>')
        y += 5
        for stage, begin, end in sorted(stages, key=lambda each: each[1]):
            x, width = LEFT + begin * scale, max(0.8, (end - begin) * scale)
            label = f"{escape(stage)}, {end - begin:.1f}"
            body.append(
                f'<rect class="{_kind(stage)}" x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{ROW - 3}">'
                f"<title>{label} ms, from {begin:.1f} to {end:.1f}</title></rect>"
                f'<text x="{x + width + 4:.1f}" y="{y + 10:.0f}">{label}</text>'
            )
            y += ROW
        y += 7
    return y + GAP


def _kind(stage: str) -> str:
    words = stage.replace(",", " ").replace(":", " ").split()
    return next((kind for word, kind in KINDS.items() if word in words), "files")


def _step(longest: float) -> float:
    """A round distance between grid lines, for about ten of them."""
    return next(step for step in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 1e5) if longest / step <= 12)
