"""The page of `firstvec explain --html`: the choice of each strategy, the first vector, and the quality as pictures.

`describe` gathers values, and `draw` makes the page of them. The page is one file: it has no script, loads nothing,
and can be sent to somebody else.
"""

from __future__ import annotations

import os

from firstvec.commands import waterfall
from firstvec.commands.charts import Row, Scale, bar, chart, facts, line, text
from firstvec.commands.quality import draw_quality
from firstvec.options import Options
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firstvec.bundle.manifest import Manifest
    from firstvec.machine.profile import ResourceProfile

_WHAT = {
    "Python starts": "from the moment before the process is started to the first line of the program",
    "import firstvec": "the names that the program imports",
    "load": "from the loader's start to the provider; its parts follow, and firstvec imports modules between them",
    "onnxruntime: library": "the shared library is loaded",
    "onnxruntime: environment": "the library registers its operators",
    "manifest": "the bundle is found, and its manifest is read",
    "choice": "the artifact is chosen",
    "tokenizer": "the tokenizer's files are verified, and the vocabulary is read",
    "verification": "the artifact's files are verified: hashed at the first load on this machine, and remembered later",
    "import provider": "the modules that compute vectors are imported",
    "engine": "the engine is imported",
    "session": "the artifact is opened",
    "self-test": "the self-test's texts are run, if they did not pass before on this machine",
    "tokenize, compute": "the text becomes tokens, and the tokens become the vector",
    "Python ends": "the interpreter ends, and the system frees the process",
}
"""Step of a run → what happens in it."""


class Page(Record):
    """The values that `draw` makes a page of."""

    manifest: Manifest
    machine: str
    options: dict[str, Any]
    """The options of the choice that are not the defaults."""
    choices: dict[str, dict[str, Any]]
    """Strategy → what ``firstvec explain --json`` says of it."""
    loads: tuple[tuple[tuple[str, ...], waterfall.Measured], ...]
    """Strategies that load the same, and how long it takes."""
    conditions: dict[str, str]


def describe(
    manifest: Manifest, profile: ResourceProfile, options: Options, choices: dict[str, dict[str, Any]]
) -> Page:
    """Measure the first vector of each different choice in fresh processes, and return the values of the page."""
    loads: dict[tuple[str, ...], list[str]] = {}
    for name, choice in choices.items():
        if "error" not in choice:
            loads.setdefault(tuple(choice[key] for key in ("artifact", "device", "session")), []).append(name)
    conditions = waterfall.conditions()
    measured = waterfall.measure([options.replace(strategy=names[0]) for names in loads.values()])
    defaults = Options().to_dict() | {
        key: getattr(options, key) for key in ("model_name", "strategy", "working_folder")
    }
    return Page(
        manifest=manifest,
        machine=str(profile),
        options={key: value for key, value in options.to_dict().items() if value != defaults[key]},
        choices=choices,
        loads=tuple(zip(map(tuple, loads.values()), measured, strict=True)),
        conditions=conditions,
    )


def draw(page: Page) -> bytes:
    """Return the page as HTML in UTF-8."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.css"), encoding="utf-8") as stream:
        style = stream.read()
    name = text(page.manifest.model.name)
    taken = {choice["artifact"] for choice in page.choices.values() if "error" not in choice}
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{name}: firstvec explain</title>
<style>
{style}</style>
</head>
<body>
{_header(page)}
<main>
{_choices(page)}
{_first_vectors(page)}
{draw_quality(page.manifest.artifacts, taken)}
</main>
{_footer(page)}
</body>
</html>
""".encode()


def _header(page: Page) -> str:
    model = page.manifest.model
    values = {
        "machine": ", ".join(filter(None, (page.conditions.get("processor"), page.machine))),
        "bundle": page.manifest.root,
        "vectors": f"{model.embedding_dim} components, of texts of at most {model.max_seq_length} tokens",
        "options": ", ".join(f"{name}={value}" for name, value in page.options.items()),
        "written": f"{page.conditions['time']}, by firstvec {page.conditions['firstvec']}",
    }
    return f'<header><p class="over">firstvec explain</p><h1>{text(model.name)}</h1>{facts(values)}</header>'


# The choice


def _choices(page: Page) -> str:
    heads = "".join(f'<th scope="col"><span>{name.upper()}</span></th>' for name in page.choices)
    rows = ""
    for artifact in page.manifest.artifacts:
        cells = "".join(_mark(choice, artifact.id) for choice in page.choices.values())
        rows += f'<tr><th scope="row" class="id">{text(artifact.id)}</th>{cells}</tr>\n'
    # Two strategies may differ in when they load and in what they open: that is for the pictures of the first vector.
    groups: dict[str, list[str]] = {}
    for name, choice in page.choices.items():
        key = {each: choice[each] for each in choice if each != "session" and not each.endswith("_before")}
        groups.setdefault(repr(key), []).append(name)
    cards = "\n".join(_reasons(names, page.choices[names[0]], page.manifest) for names in groups.values())
    return f"""<section aria-labelledby="choice">
<h2 id="choice">Which artifact each strategy takes</h2>
<p class="lead">A strategy takes the artifact that is marked 1. If it fails to load, the strategy takes 2, then 3.
A dash: the strategy does not take it, for the reason below.</p>
<div class="card"><table class="matrix">
<caption class="hidden">The order in which each strategy takes the artifacts</caption>
<thead><tr><th scope="col"><span class="hidden">artifact</span></th>{heads}</tr></thead>
<tbody>{rows}</tbody></table></div>
<div class="cards">
{cards}
</div>
</section>"""


def _mark(choice: dict[str, Any], artifact: str) -> str:
    order = [choice["artifact"], *choice["fallbacks"]] if "error" not in choice else []
    if artifact not in order:
        return '<td><span class="mark" aria-hidden="true">–</span><span class="hidden">not taken</span></td>'
    place = order.index(artifact) + 1
    kind, words = ("takes", "is taken") if place == 1 else ("next", "if the one before fails")
    return f'<td><span class="mark {kind}">{place}</span><span class="hidden"> {words}</span></td>'


def _reasons(names: Sequence[str], choice: dict[str, Any], manifest: Manifest) -> str:
    title = _title(names)
    if "error" in choice:
        return f'<div class="card">{title}<h3>takes none</h3><p class="error">{text(choice["error"])}</p></div>'
    artifacts_of: dict[str, list[str]] = {}
    for artifact, reason in choice["rejected"].items():
        artifacts_of.setdefault(reason, []).append(artifact)
    for artifact, reason in (manifest.left_out or {}).items():
        artifacts_of.setdefault(f"left out by the build: {reason}", []).append(artifact)
    rows = "".join(
        f'<div><dt class="id">not {text(", ".join(artifacts))}</dt><dd>{text(reason)}</dd></div>'
        for reason, artifacts in artifacts_of.items()
    )
    why = f"{choice['reason']}; on {choice['device']}"
    return f"""<div class="card">{title}<h3>takes <span class="id">{text(choice["artifact"])}</span></h3>
<p>{text(why)}</p><dl class="reasons">{rows}</dl></div>"""


def _title(strategies: Sequence[str]) -> str:
    return f'<p class="strategies">{" · ".join(strategies).upper()}</p>'


# The first vector


def _first_vectors(page: Page) -> str:
    runs = [measured.median for _, measured in page.loads if measured.error is None]
    longest = max((run.end_ms for run in runs), default=1.0)
    cards = "\n".join(_waterfall(names, measured, longest) for names, measured in page.loads)
    cards = cards or '<div class="card"><p class="error">No strategy can take an artifact on this machine.</p></div>'
    seen = {step["name"] for run in runs for step in run.steps}
    steps = facts({name: what for name, what in _WHAT.items() if name in seen})
    return f"""<section aria-labelledby="first-vector">
<h2 id="first-vector">The first vector of a fresh process</h2>
<p class="lead">Each picture is one process, from its start to its end. The dashed line is the moment when the program
has its first vector. Strategies that load the same way share a picture.</p>
<div class="cards wide">
{cards}
</div>
<details><summary>What the steps are</summary>{steps}</details>
</section>"""


def _waterfall(names: Sequence[str], measured: waterfall.Measured, longest: float) -> str:
    if measured.error is not None:
        return f'<div class="card">{_title(names)}<h3>no vector</h3><p class="error">{text(measured.error)}</p></div>'
    run = measured.median
    report, all_ms = run.report, [each.first_vector_ms for each in measured.runs]
    # One scale for all, so that they can be compared, but not where a picture would be too small.
    scale = Scale(high=1.02 * (longest if run.end_ms > longest / 4 else run.end_ms))
    moment = line("moment", scale.at(run.first_vector_ms))

    def row(step: dict[str, Any], has_parts: bool) -> Row:
        begin, end = step["at_ms"], step["at_ms"] + step["ms"]
        return Row(
            name=step["name"],
            picture=bar(f"{step['kind']} whole" if has_parts else step["kind"], scale.at(begin), scale.at(end))
            + moment,
            number=_ms(step["ms"]),
            words=f"from {_ms(begin)} to {_ms(end)} ms",
            kind="part" if step["level"] else "",
        )

    levels = [step["level"] for step in run.steps]
    rows = map(row, run.steps, (level < following for level, following in zip(levels, [*levels[1:], 0], strict=True)))
    failed = "".join(
        f'<p class="error">{text(each["artifact"])} failed: {text(each["reason"])}</p>' for each in report["fallbacks"]
    )
    engine = f"Engine: {report['engine']} on {report['device']}, {report['session']} session"
    checks = f"files {report['verification']}, self-test {report['self_test']}"
    return f"""<figure class="card"><figcaption>{_title(names)}<h3 class="id">{text(report["artifact"])}</h3>
<p class="big">{_ms(run.first_vector_ms)} ms <small>to the first vector</small></p>
<p class="note">The median of {len(all_ms)} runs ({_ms(min(all_ms))} to {_ms(max(all_ms))} ms). The process ended after
{_ms(run.end_ms)} ms. {text(engine)}; {text(checks)}.</p>{failed}</figcaption>
{chart("The steps of the process, in milliseconds", "ms", scale, rows)}</figure>"""


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


# How it was measured


def _footer(page: Page) -> str:
    programs = [measured.program for _, measured in page.loads]
    shown = f"<pre>{text(programs[0])}</pre>" if programs else ""
    return f"""<footer><h2>How the first vector was measured</h2>
<p class="lead">Each load ran in fresh processes of this program, in turn with the other loads. The first run of each
is not counted, because it may verify files and run the self-test. The parent's clock, which all processes share, began
before it started a process, and ended when the process had ended. The vector is a list of floats, so numpy is not
imported. A step that the machine's other programs delay is longer.</p>
{facts(page.conditions)}
<details><summary>The program</summary>{shown}</details></footer>"""
