"""How good each artifact of a bundle is, and how large, as pictures of the page of `firstvec explain --html`."""

from __future__ import annotations

from firstvec.commands.charts import Row, Scale, bar, chart, dot, legend, line, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from firstvec.bundle.manifest import Artifact, Quality

_NUMBERS = (
    ("cosine_mean", "cosine, mean", ".5f"),
    ("cosine_p1", "cosine, first percentile", ".4f"),
    ("cosine_min", "cosine, worst", ".4f"),
    ("odd_cosine_min", "cosine, odd texts", ".4f"),
    ("batch_cosine_min", "cosine, padded batch", ".5f"),
    ("neighbour_overlap", "neighbours", ".1%"),
    ("spearman", "Spearman", ".2f"),
    ("max_abs_diff", "max |Δ|", ".1e"),
)
"""Field of `Quality`, heading, and format."""


def draw_quality(artifacts: Sequence[Artifact], taken: Collection[str]) -> str:
    """Return the section of the page. The names of artifacts that are ``taken`` are bold."""
    charts = [_cosines(artifacts, taken), _dots("neighbour_overlap", artifacts, taken)]
    if any(artifact.quality.spearman is not None for artifact in artifacts):
        charts.append(_dots("spearman", artifacts, taken))
    charts.append(_sizes(artifacts, taken))
    cards = "\n".join(f'<figure class="card{" full" * (each is charts[0])}">{each}</figure>' for each in charts)
    sentences = " or ".join(str(count) for count in sorted({artifact.quality.sentences for artifact in artifacts}))
    return f"""<section aria-labelledby="quality">
<h2 id="quality">How good each artifact is, and how large</h2>
<p class="lead">The build compared the vectors of each artifact with the fp32 vectors of sentence-transformers, for
{sentences} sentences. A red line is a limit that the build enforced. Artifacts with a bold name are taken here.</p>
<div class="cards wide">
{cards}
</div>
{_numbers(artifacts)}
</section>"""


def _cosines(artifacts: Sequence[Artifact], taken: Collection[str]) -> str:
    """Draw mean, first percentile and worst cosine of each artifact, and the limits of mean and worst."""
    qualities = [artifact.quality for artifact in artifacts]
    limits = [each.thresholds[name] for each in qualities for name in ("cosine_mean", "cosine_min") if _has(each, name)]
    lowest = min([*limits, *(each.cosine_min for each in qualities)])
    scale = Scale(low=1 - max(1.06 * (1 - lowest), 1e-3), high=1.0)

    def row(artifact: Artifact) -> Row:
        quality = artifact.quality
        mean, worst, p1 = map(scale.at, (quality.cosine_mean, quality.cosine_min, quality.cosine_p1))
        stem = f'<line class="stem" x1="{worst}%" x2="{mean}%" y1="50%" y2="50%"/>{line("stem", p1, 34, 66)}'
        limits = _limit("cosine_mean", quality, scale, 4, 40) + _limit("cosine_min", quality, scale, 60, 96)
        return Row(
            name=artifact.id,
            picture=limits + stem + dot("ring", worst) + dot("dot", mean),
            number=f"{quality.cosine_min:.4f}",
            words=f"mean {quality.cosine_mean:.5f}, first percentile {quality.cosine_p1:.4f}",
            kind=f"tall {_kind(artifact, taken)}",
        )

    symbols = {
        "mean": dot("dot", 50),
        "first percentile": line("stem", 50),
        "worst": dot("ring", 50),
        "limit of the mean": line("limit", 50, 0, 50),
        "limit of the worst": line("limit", 50, 50, 100),
    }
    return _figure("Cosine to the fp32 vectors", "worst", scale, map(row, artifacts)) + legend(symbols)


def _dots(name: str, artifacts: Sequence[Artifact], taken: Collection[str]) -> str:
    """Draw one number of each artifact that has it, and its limit."""
    factor, form, title, unit = {
        "neighbour_overlap": (100, ".1f", "Share of the ten nearest neighbours that stay", "%"),
        "spearman": (1, ".2f", "Spearman correlation with labelled pairs", "× 100"),
    }[name]
    known = [artifact for artifact in artifacts if getattr(artifact.quality, name) is not None]
    values = {artifact.id: factor * getattr(artifact.quality, name) for artifact in known}
    limits = [factor * each.quality.thresholds[name] for each in known if _has(each.quality, name)]
    lowest, highest = min([*limits, *values.values()]), max([100.0 * (factor == 100), *limits, *values.values()])
    scale = Scale(low=lowest - max(0.06 * (highest - lowest), 0.1), high=highest)
    rows = [
        Row(
            name=each.id,
            picture=_limit(name, each.quality, scale, 12, 88, factor) + dot("dot", scale.at(values[each.id])),
            number=f"{values[each.id]:{form}}",
            kind=_kind(each, taken),
        )
        for each in known
    ]
    return _figure(title, unit, scale, rows)


def _sizes(artifacts: Sequence[Artifact], taken: Collection[str]) -> str:
    scale = Scale(high=max(artifact.size for artifact in artifacts) / 1e6 or 1.0)
    rows = [
        Row(
            name=artifact.id,
            picture=bar("load", 0, scale.at(artifact.size / 1e6)),
            number=f"{artifact.size / 1e6:.1f}" if artifact.size > 1e6 else f"{artifact.size / 1e6:.3f}",
            kind=_kind(artifact, taken),
        )
        for artifact in artifacts
    ]
    return _figure("Size of the files", "MB", scale, rows)


def _figure(title: str, unit: str, scale: Scale, rows: Iterable[Row]) -> str:
    return f"<figcaption><h3>{title}</h3></figcaption>{chart(title, unit, scale, rows)}"


def _kind(artifact: Artifact, taken: Collection[str]) -> str:
    return "taken" if artifact.id in taken else ""


def _has(quality: Quality, name: str) -> bool:
    return name in quality.thresholds


def _limit(name: str, quality: Quality, scale: Scale, top: int, bottom: int, factor: int = 1) -> str:
    return line("limit", scale.at(factor * quality.thresholds[name]), top, bottom) if _has(quality, name) else ""


def _numbers(artifacts: Sequence[Artifact]) -> str:
    """Return a table of all numbers, which says in words what the pictures show."""
    heads = "".join(f'<th scope="col">{each}</th>' for each in ("precision", "ISA", *(row[1] for row in _NUMBERS)))
    rows = ""
    for artifact in artifacts:
        cells = f"<td>{text(artifact.precision)}</td><td>{text(artifact.isa or 'any')}</td>"
        for name, _, form in _NUMBERS:
            value, limit = getattr(artifact.quality, name), artifact.quality.thresholds.get(name)
            side = "≤" if name == "max_abs_diff" else "≥"
            under = f" <small>{side} {limit:g}</small>" if limit is not None else ""
            cells += f"<td>{format(value, form) if value is not None else '–'}{under}</td>"
        rows += f'<tr><th scope="row" class="id">{text(artifact.id)}</th>{cells}</tr>\n'
    return f"""<div class="card"><h3 id="numbers">All numbers</h3>
<p class="note">Below a number stands its limit. A dash: it was not measured.</p>
<div class="scroll" role="region" aria-labelledby="numbers" tabindex="0"><table class="numbers">
<caption class="hidden">Quality of each artifact, and the limits that the build enforced</caption>
<thead><tr><th scope="col">artifact</th>{heads}</tr></thead>
<tbody>{rows}</tbody></table></div></div>"""
