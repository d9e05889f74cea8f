"""The pictures of quality: every number, every limit, and where they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from firstvec.bundle.manifest import Artifact, Manifest
from firstvec.commands.quality import draw_quality


@pytest.fixture
def artifacts(bundle: Path) -> tuple[Artifact, ...]:
    return Manifest.read(bundle).artifacts


def figure(html: str, title: str) -> str:
    """Return the figure of that title."""
    [found] = [each for each in re.findall(r"<figure.*?</figure>", html, re.DOTALL) if f"<h3>{title}</h3>" in each]
    return str(found)


def rows(html: str) -> list[str]:
    """Return the rows of a table's body."""
    return re.findall(r"<tr.*?</tr>", html.partition("<tbody>")[2], re.DOTALL)


def test_every_artifact_has_a_row_in_each_picture(artifacts: tuple[Artifact, ...]) -> None:
    html = draw_quality(artifacts, {artifacts[0].id})
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(figures) == 3
    for each in figures:
        found = rows(each)
        assert [re.findall(r'class="name">([^<]+)<', row) for row in found] == [[each.id] for each in artifacts]
        assert ["taken" in row for row in found] == [True, *(False for _ in artifacts[1:])]


def test_marks_and_limits_stand_where_the_numbers_are(artifacts: tuple[Artifact, ...]) -> None:
    html = figure(draw_quality(artifacts, ()), "Cosine to the fp32 vectors")
    lowest = min(artifact.quality.thresholds.get("cosine_min", 1.0) for artifact in artifacts)
    low = 1 - 1.06 * (1 - lowest)
    for artifact, row in zip(artifacts, rows(html), strict=True):
        quality = artifact.quality
        [ring] = re.findall(r'class="ring" cx="([\d.]+)%"', row)
        [dot] = re.findall(r'class="dot" cx="([\d.]+)%"', row)
        limits = [float(each) for each in re.findall(r'class="limit" x1="([\d.]+)%"', row)]
        names = [name for name in ("cosine_mean", "cosine_min") if name in quality.thresholds]
        values = [quality.cosine_min, quality.cosine_mean, *(quality.thresholds[name] for name in names)]
        expected = [100 * (value - low) / (1 - low) for value in values]
        assert [float(ring), float(dot), *limits] == pytest.approx(expected, abs=0.01)
        assert f'<td class="number">{quality.cosine_min:.4f}</td>' in row
        assert f"mean {quality.cosine_mean:.5f}, first percentile {quality.cosine_p1:.4f}" in row
    assert any("limit" in row for row in rows(html))


def test_the_table_has_every_number_and_every_limit(artifacts: tuple[Artifact, ...]) -> None:
    html = draw_quality(artifacts, ()).partition('<table class="numbers">')[2]
    for artifact, row in zip(artifacts, rows(html), strict=True):
        quality = artifact.quality
        cells = re.findall(r"<td>(.*?)</td>", row)
        assert cells[:2] == [artifact.precision, artifact.isa or "any"]
        assert [cell.partition(" ")[0] for cell in cells[2:]] == [
            f"{quality.cosine_mean:.5f}",
            f"{quality.cosine_p1:.4f}",
            f"{quality.cosine_min:.4f}",
            "–" if quality.odd_cosine_min is None else f"{quality.odd_cosine_min:.4f}",
            f"{quality.batch_cosine_min:.5f}",
            f"{quality.neighbour_overlap:.1%}",
            "–",  # nobody gave labelled pairs to the build
            f"{quality.max_abs_diff:.1e}",
        ]
        sides = {name: "≤" if name == "max_abs_diff" else "≥" for name in quality.thresholds}
        limits = {f"{sides[name]} {limit:g}" for name, limit in quality.thresholds.items()}
        assert {*re.findall(r"<small>(.*?)</small>", row)} == limits
        assert limits


def test_spearman_has_a_picture_where_it_was_measured(artifacts: tuple[Artifact, ...]) -> None:
    measured = [
        artifact.replace(quality=artifact.quality.replace(spearman=82.03 - place, thresholds={"spearman": 70.0}))
        for place, artifact in enumerate(artifacts[1:])
    ]
    html = draw_quality([artifacts[0], *measured], ())
    found = rows(figure(html, "Spearman correlation with labelled pairs"))
    assert [re.findall(r'class="number">([^<]+)<', row) for row in found] == [
        [f"{82.03 - place:.2f}"] for place in range(len(measured))
    ]
    assert all(row.count('class="limit"') == 1 for row in found)
    assert "<td>82.03 <small>≥ 70</small></td>" in html


def test_a_bundle_of_one_perfect_artifact_has_a_scale(artifacts: tuple[Artifact, ...]) -> None:
    perfect = artifacts[0].quality.replace(
        cosine_mean=1.0, cosine_p1=1.0, cosine_min=1.0, neighbour_overlap=1.0, thresholds={}
    )
    empty = artifacts[0].files[0].replace(size=0)
    html = draw_quality([artifacts[0].replace(quality=perfect, files=(empty,))], ())
    assert html.count("<figure") == 3
    assert 'class="limit" x1="50%"' in html  # the legend's
    assert html.count('class="limit"') == 2
    assert "nan" not in html.lower().replace("nano", "")


def test_a_worst_cosine_below_zero_stands_within_the_picture(artifacts: tuple[Artifact, ...]) -> None:
    bad = artifacts[0].quality.replace(cosine_mean=0.4, cosine_p1=-0.6, cosine_min=-0.9, thresholds={})
    html = figure(draw_quality([artifacts[0].replace(quality=bad)], ()), "Cosine to the fp32 vectors")
    places = [float(each) for each in re.findall(r'(?:cx|x1|x2)="(-?[\d.]+)%"', html)]
    assert min(places) >= 0
    assert max(places) <= 100
