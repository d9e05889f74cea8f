"""`firstvec explain --html`: the page's text, what it must never load or run, and how Chromium shows it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.strategy import STRATEGIES
from tests import browser
from tests.browser import Browser
from tests.conftest import Fresh, edit_manifest

HOSTILE = "<script>alert(1)</script>"
ENTITY = "&lt;script&gt;alert(1)&lt;/script&gt;"
EMPTY = {"meta", "link", "br", "hr", "img", "input"}
SHAPES = {"rect", "line", "circle"}


class Outline(HTMLParser):
    """What a page is made of. A tag that is closed in the wrong order is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES, tag  # in HTML itself, a slash closes nothing
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def all(self, *names: str) -> list[dict[str, str | None]]:
        """Return the attributes of each tag of these names."""
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def hostile(tiny_bundle: Path) -> Path:
    """A bundle whose manifest has markup in every text that is shown."""

    def change(document: dict[str, Any]) -> None:
        document["model"]["name"] = f"{HOSTILE}\u202e&amp;"
        document["left_out"] = {f"left{HOSTILE}": f"because{HOSTILE}"}
        stranger = {"id": f"id{HOSTILE}", "isa": f"isa{HOSTILE}", "precision": f"precision{HOSTILE}"}
        document["artifacts"][-1] |= stranger

    edit_manifest(tiny_bundle, change)
    return tiny_bundle


def test_the_page_has_the_choice_the_first_vector_and_the_quality(
    bundle: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    plain = firstvec("explain").stdout
    done = firstvec("explain", "--html", page)
    assert (done.returncode, done.stderr) == (0, "")
    html = page.read_text("utf-8")
    outline = Outline(html)
    text = re.sub(r"<[^>]+>", " ", html)

    # For everybody: language, title, headings without gaps, tables that say what they are.
    assert outline.all("html") == [{"lang": "en"}]
    assert "<title>sentence-transformers/all-MiniLM-L6-v2: firstvec explain</title>" in html
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(outline.all("table")) == len(outline.all("caption")) > 5
    assert all(each.get("scope") in ("col", "row") for each in outline.all("th"))
    assert all(each.get("aria-hidden") == "true" for each in outline.all("svg"))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    named = [attributes["aria-labelledby"] for _, attributes in outline.tags if "aria-labelledby" in attributes]
    assert {*named} <= {*ids}
    assert len(named) == 4

    # One file that loads nothing and runs nothing.
    assert not outline.all("script", "link", "img", "iframe", "object", "embed", "form", "a", "use", "image")
    assert not {name for _, attributes in outline.tags for name in attributes} & {"src", "href", "style", "onload"}
    assert "://" not in html
    assert not re.search(r"url\(|@import|@font-face", html)

    # The same choice and the same reasons as the text, which is printed all the same.
    assert done.stdout == f"{plain}\nThe page is in {page}\n"
    strategies = json.loads(firstvec("explain", "--json").stdout)["strategies"]
    for name, choice in strategies.items():
        assert f"<span>{name.upper()}</span>" in html
        assert choice["reason"] in text
        assert all(reason in text for reason in choice["rejected"].values())
    rows = dict(re.findall(r'<tr><th scope="row" class="id">([^<]+)</th>(.*?)</tr>', _part(html, "matrix")))
    assert [*rows] == [artifact.id for artifact in Manifest.read(bundle).artifacts]
    for artifact, row in rows.items():
        orders = [[choice["artifact"], *choice["fallbacks"]] for choice in strategies.values()]
        places = [str(order.index(artifact) + 1) if artifact in order else "–" for order in orders]
        assert re.findall(r'class="mark[^>]*>([^<]+)<', row) == places

    # A picture for each different load, with its strategies, and how it was measured.
    loads = {(choice["artifact"], choice["session"]) for choice in strategies.values()}
    figures = [each for each in re.findall(r"<figure.*?</figure>", html, re.DOTALL) if "Python starts" in each]
    assert len(figures) == len(loads) >= 2
    assert {artifact for each in figures for artifact in re.findall(r'<h3 class="id">([^<]+)<', each)} == {
        choice["artifact"] for choice in strategies.values()
    }
    shown = " · ".join(" · ".join(re.findall(r'class="strategies">([^<]+)<', each)) for each in figures)
    assert sorted(shown.split(" · ")) == sorted(name.upper() for name in STRATEGIES)
    for each in figures:
        assert "The median of 7 runs" in each
        [moment] = {*re.findall(r'class="moment" x1="([\d.]+)%"', each)}
        assert 0 < float(moment) < 100
        for begin, width in re.findall(r'<rect class="bar[^"]*" x="([\d.]+)%" width="([\d.]+)%"', each):
            assert float(begin) + float(width) <= 100
    for fact in ("processor", "Python", "load average", "OptimizedEmbeddingLoader(model_name="):
        assert fact in text


def _part(html: str, kind: str) -> str:
    """Return the table of that class."""
    return html.partition(f'<table class="{kind}">')[2].partition("</table>")[0]


def test_json_stays_json(tiny_built: Path, firstvec: Fresh, tmp_path: Path) -> None:
    done = firstvec("explain", "-m", tiny_built, "-s", "quantized", "--json", "--html", tmp_path / "page.html")
    assert [*json.loads(done.stdout)["strategies"]] == ["quantized"]
    html = (tmp_path / "page.html").read_text("utf-8")
    assert re.findall(r'<th scope="col"><span>([A-Z]+)</span>', html) == ["QUANTIZED"]


def test_what_a_manifest_says_is_shown_and_never_markup(hostile: Path, firstvec: Fresh, tmp_path: Path) -> None:
    options = ("-m", hostile, "--strategy", "lazy", "--html", tmp_path / "page.html")
    done = firstvec("explain", *options)
    assert (done.returncode, done.stderr) == (0, "")
    html = (tmp_path / "page.html").read_text("utf-8")
    outline = Outline(html)
    assert not outline.all("script")
    assert f"<h1>{ENTITY}\\u202e&amp;amp;</h1>" in html
    for text in ("id", "isa", "precision", "left", "because"):
        assert f"{text}{ENTITY}" in html
    assert html.isprintable() or {each for each in html if not each.isprintable()} == {"\n"}


def test_errors_are_shown_in_the_place_of_what_failed(tiny_bundle: Path, firstvec: Fresh, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (tiny_bundle / "onnx/model.onnx").write_bytes(b"changed")
    # The best artifact fails, so another one answers, or none does.
    options = ("-m", tiny_bundle, "--html", page, "--min-quality", "0.99999")
    assert firstvec("explain", *options, "--artifact", "onnx-fp32").returncode == 0
    html = page.read_text("utf-8")
    assert html.count("<h3>no vector</h3>") == 2  # of the two kinds of session
    assert f"{tiny_bundle}/onnx/model.onnx is not the file that was built" in html
    assert "What the steps are" in html

    assert firstvec("explain", *options).returncode == 0
    html = page.read_text("utf-8")
    [card] = re.findall(r'<div class="card"><p class="strategies">QUANTIZED</p>.*?</div>', html, re.DOTALL)
    assert '<h3>takes none</h3><p class="error">no artifact of' in card
    assert "&lt; min_quality 0.99999" in card


def test_a_fallback_is_shown_beside_what_answers(tiny_bundle: Path, firstvec: Fresh, tmp_path: Path) -> None:
    choice = json.loads(firstvec("explain", "-m", tiny_bundle, "-s", "lazy", "--json").stdout)["strategies"]["lazy"]
    best = next(each for each in Manifest.read(tiny_bundle).artifacts if each.id == choice["artifact"])
    (tiny_bundle / best.files[0].path).write_bytes(b"changed")
    done = firstvec("explain", "-m", tiny_bundle, "-s", "lazy", "--html", tmp_path / "page.html")
    assert (done.returncode, done.stderr) == (0, "")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert f'<h3 class="id">{choice["fallbacks"][0]}</h3>' in html
    assert f'<p class="error">{best.id} failed: ' in html


def test_the_page_is_written_whole_or_not_at_all(tiny_built: Path, firstvec: Fresh, tmp_path: Path) -> None:
    done = firstvec("explain", "-m", tiny_built, "-s", "lazy", "--html", tmp_path / "no-folder/page.html")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: output '{tmp_path}/no-folder/page.html' cannot be written")
    assert done.stderr.endswith("choose another --html\n")
    # No artifact, no page.
    none = ("-s", "quantized", "--min-quality", "0.99999")
    assert firstvec("explain", "-m", tiny_built, *none, "--html", tmp_path / "page.html").returncode == 1
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "page.html").write_text("older", "utf-8")
    assert firstvec("explain", "-m", tiny_built, "-s", "lazy", "--html", tmp_path / "page.html").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_without_the_option_nothing_of_the_page_is_imported(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec.commands.main import main
main(["explain", "-m", sys.argv[1]])
names = ("page", "charts", "quality", "waterfall")
assert not {f"firstvec.commands.{name}" for name in names} & {*sys.modules}
assert not {"subprocess", "html", "threading", "tempfile"} & {*sys.modules}, sys.modules
"""
    assert "takes" in fresh(code, tiny_built).stdout


# In Chromium

LOOK = """
const problems = [];
// Not innerWidth, because a phone zooms out until a page that is too wide fits.
const box = document.scrollingElement, width = box.clientWidth;
if (box.scrollWidth > width) problems.push(`the page is ${box.scrollWidth} wide`);
const rgb = text => {
  const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return {r, g, b, a};
};
const light = ({r, g, b}) => {
  const [x, y, z] = [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * x + .7152 * y + .0722 * z;
};
const contrast = (one, other) => {
  const [a, b] = [light(rgb(one)), light(rgb(other))].sort((x, y) => y - x);
  return (a + .05) / (b + .05);
};
const ground = element => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (rgb(colour).a === 1) return colour;
  }
  return "rgb(255, 255, 255)";
};
let texts = 0, shapes = 0;
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  const style = getComputedStyle(element), place = element.getBoundingClientRect();
  if (!element.checkVisibility() || element.closest(".hidden")) continue;
  const label = `${element.tagName} ${element.textContent.trim().slice(0, 40)}`;
  if (own) {
    texts++;
    const colour = element.tagName === "text" ? style.fill : style.color;
    const found = contrast(colour, ground(element));
    if (found < 4.5) problems.push(`contrast ${found.toFixed(2)}: ${label}`);
    if (parseFloat(style.fontSize) < 11) problems.push(`small: ${label}`);
  }
  if (!element.closest(".scroll") && (place.right > width + .5 || place.left < -.5))
    problems.push(`outside of the page: ${label}`);
  if (element.tagName === "text") {
    const svg = element.ownerSVGElement.getBoundingClientRect();
    const across = place.left < svg.left - 1 || place.right > svg.right + 1;
    if (across || place.top < svg.top - 1 || place.bottom > svg.bottom + 1)
      problems.push(`outside of its picture: ${label}`);
  }
  if (["rect", "circle", "line"].includes(element.tagName) && !["grid"].includes(element.className.baseVal)) {
    shapes++;
    const colour = style.stroke !== "none" && !element.matches(".dot") ? style.stroke : style.fill;
    const found = contrast(colour, ground(element));
    if (found < 3) problems.push(`contrast ${found.toFixed(2)}: ${element.className.baseVal}`);
  }
}
for (const row of document.querySelectorAll(".chart thead svg")) {
  const labels = [...row.querySelectorAll("text")].filter(each => each.checkVisibility());
  const places = labels.map(each => each.getBoundingClientRect());
  places.slice(1).forEach((place, n) => {
    if (place.left < places[n].right + 2) problems.push(`labels touch: ${labels[n].textContent}`);
  });
}
for (const chart of document.querySelectorAll(".chart")) {
  const lefts = new Set([...chart.querySelectorAll(".picture svg")].map(each => each.getBoundingClientRect().left));
  if (lefts.size !== 1) problems.push("the pictures of a chart are not aligned");
}
const scroll = document.querySelector(".scroll");
return {
  problems, texts, shapes, ground: getComputedStyle(document.body).backgroundColor,
  width, scripts: document.scripts.length, scrolls: scroll.scrollWidth > scroll.clientWidth,
  requests: performance.getEntriesByType("resource").length,
};
"""


@pytest.fixture
def chromium() -> Iterator[Browser]:
    if browser.IS_MISSING:
        pytest.skip(browser.IS_MISSING)
    with browser.start() as started:
        yield started


def test_a_browser_shows_it_on_a_phone_and_on_a_desk_in_both_schemes(
    bundle: Path, hostile: Path, firstvec: Fresh, tmp_path: Path, chromium: Browser
) -> None:
    pages = {
        "all": (bundle,),
        "onnx": (bundle, "--artifact", "onnx-fp32"),
        "hostile, none": (hostile, "--min-quality", "0.99999"),
    }
    for name, (model, *options) in pages.items():
        page = tmp_path / f"{name}.html"
        assert firstvec("explain", "-m", model, *options, "--html", page).returncode == 0
        grounds = set()
        for width in (375, 1280):
            for dark in (False, True):
                chromium.show(page, width=width, dark=dark)
                chromium.run("document.querySelectorAll('details').forEach(each => each.open = true)")
                found = chromium.run(LOOK)
                which = (name, width, dark)
                assert found["problems"] == [], which
                assert found["width"] == width
                assert found["texts"] > 150, which
                assert found["shapes"] > 50, which
                assert (found["scripts"], found["requests"]) == (0, 0), which
                assert found["scrolls"] or width > 375, which
                assert chromium.messages() == [], which
                grounds.add((dark, found["ground"]))
                if folder := os.environ.get("FIRSTVEC_TEST_PICTURES"):  # to look at them
                    Path(folder, f"{name} {width} {'dark' if dark else 'light'}.png").write_bytes(chromium.picture())
        assert len(grounds) == 2


def test_the_browser_would_say_that_something_is_wrong(tmp_path: Path, chromium: Browser) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        """<!DOCTYPE html><meta name="viewport" content="width=device-width"><meta charset="utf-8">
<body style="background: #fff; font-size: 12px">
<p style="color: #999">pale</p><p style="width: 900px">wide</p><p style="font-size: 9px">tiny</p>
<table class="chart"><thead><tr><td class="picture"><svg width="100" height="20"><text x="0" y="15">12</text>
<text x="8" y="15">34</text><text x="90" y="15">5678</text></svg></td></tr></thead></table>
<svg><rect class="bar" width="9" height="9" fill="#ddd"/></svg><div class="scroll">narrow</div>""",
        "utf-8",
    )
    chromium.show(page, width=375, dark=False)
    found = chromium.run(LOOK)["problems"]
    for problem in (
        *("contrast 2.85: P pale", "the page is 908 wide", "outside of the page: P wide", "small: P tiny"),
        *("labels touch: 12", "outside of its picture: text 5678", "contrast 1.36: bar"),
    ):
        assert problem in found, found
    assert not [problem for problem in found if problem.endswith((" 34", "picture: text 12"))]
