"""Charts of the page: scales, marks, and text that HTML shows as it is."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstvec.commands.charts import Row, Scale, bar, chart, dot, facts, legend, line, text

_NUMBERS = st.floats(-1e6, 1e6)


@given(low=_NUMBERS, width=st.floats(1e-3, 1e6))
def test_ticks_are_few_round_numbers_within_the_scale(low: float, width: float) -> None:
    scale = Scale(low=low, high=low + width)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert all(-0.1 <= scale.at(tick) <= 100.1 for tick in ticks)
    [step] = {float(f"{after - before:.3g}") for before, after in pairwise(ticks)}
    assert f"{step:e}"[0] in "125"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 59.6, [0, 20, 40]),
        (0, 60.8, [0, 20, 40, 60]),
        (0, 90.3, [0, 20, 40, 60, 80]),
        (0, 3120, [0, 1000, 2000, 3000]),
        (0.9682, 1, [0.97, 0.98, 0.99, 1]),
        (89.4, 100, [90, 95, 100]),
        (-0.59, 1, [-0.5, 0, 0.5, 1]),
    ],
)
def test_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low=low, high=high).ticks() == ticks


def test_places_are_percents_of_the_width() -> None:
    scale = Scale(low=50.0, high=150.0)
    assert [scale.at(value) for value in (50, 75, 150)] == [0, 25, 100]
    assert 'x="25.0%" width="50.0%"' in bar("load", scale.at(75), scale.at(125))
    assert 'x1="25.0%" x2="25.0%" y1="4%" y2="40%"' in line("limit", scale.at(75), 4, 40)
    assert 'class="ring" cx="75.0%"' in dot("ring", scale.at(125))


def test_a_chart_is_a_table_that_can_be_read_without_its_pictures() -> None:
    rows = [Row(name="one <b>", picture=bar("load", 0, 50), number="5.0", words="from 0 to 5 ms", kind="part")]
    html = chart("The steps", "ms", Scale(high=10.0), rows)
    assert '<caption class="hidden">The steps</caption>' in html
    assert html.count("<th scope=") == 4
    assert '<tr class="part"><th scope="row" class="name">one &lt;b&gt;</th>' in html
    assert "from 0 to 5 ms" in html
    assert '<td class="number">5.0</td>' in html
    assert html.count('aria-hidden="true"') == html.count("<svg") == 2


def test_labels_are_those_of_the_ticks_and_stay_within_the_picture() -> None:
    labels = re.findall(r'<text class="(\w*)" x="([\d.]+)%" y="13" text-anchor="(\w+)">([\d.]+)<', _chart(0.9682, 1.0))
    assert [label[3] for label in labels] == ["0.97", "0.98", "0.99", "1"]
    assert [label[2] for label in labels] == ["start", "middle", "middle", "end"]
    # A phone shows every second label where there are too many characters.
    assert [label[0] for label in labels] == ["", "second", "", "second"]
    assert "second" not in _chart(0.0, 60.8)


def _chart(low: float, high: float) -> str:
    return chart("title", "unit", Scale(low=low, high=high), [])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<script>&\"'", "&lt;script&gt;&amp;&quot;&#x27;"),
        ("right\u202eleft\x1b[31m\udcff", "right\\u202eleft\\x1b[31m\\udcff"),
        (12, "12"),
    ],
)
def test_text_is_shown_as_it_is(value: object, shown: str) -> None:
    assert text(value) == shown
    assert f"<dd>{shown}</dd>" in facts({"name": str(value), "empty": ""})
    assert "empty" not in facts({"name": str(value), "empty": ""})
    assert legend({str(value): dot("dot", 50)}).endswith(f"</svg>{shown}</li></ul>")
