"""What the command line shows: tables for people, plain values for `--json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firstvec.manifest import Artifact, Manifest
    from firstvec.selection import Choice

out = Console(highlight=False, soft_wrap=True)
if not out.is_terminal:
    out.width = 1000  # a file or a pipe has no width: fold nothing


def artifact_table(manifest: Manifest, timings: Mapping[str, tuple[float, float] | None] | None = None) -> Table:
    """A row an artifact; ``timings`` maps an id to (load, first vector) in milliseconds, None if it cannot run."""
    table = Table(
        title=f"{manifest.model.name}  ({manifest.root})", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1)
    )
    for column in ("format", "precision", "ISA"):
        table.add_column(column, no_wrap=True)
    headings = ["MB", "cosine", "worst", "max |Δ|"]
    if timings is not None:
        headings += ["load ms", "first vector ms"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=" " not in heading)
    for artifact in manifest.artifacts:
        quality = artifact.quality
        row = [
            artifact.format,
            artifact.precision,
            artifact.isa or "any",
            f"{artifact.size / 1e6:.1f}",
            f"{quality.cosine_mean:.5f}",
            f"{quality.cosine_min:.4f}",
            f"{quality.max_abs_diff:.1e}",
        ]
        if timings is not None:
            timing = timings.get(artifact.id)
            row += [f"{milliseconds:.0f}" for milliseconds in timing] if timing else ["–", "not here"]
        table.add_row(*row)
    return table


def choice_table(choice: Choice) -> Table:
    """Which artifact was chosen, and why each other one was not."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("[green]✓[/]", choice.artifact.id, f"{choice.reason}; on {choice.device}")
    for artifact in choice.candidates[1:]:
        table.add_row(" ", artifact.id, "next, if the one above fails to load")
    for artifact, reason in choice.rejected:
        table.add_row("[red]✗[/]", artifact.id, reason)
    return table


def choice_values(choice: Choice) -> dict[str, Any]:
    """A choice as JSON values."""
    return {
        "artifact": choice.artifact.id,
        "device": choice.device,
        "reason": choice.reason,
        "fallbacks": [artifact.id for artifact in choice.candidates[1:]],
        "rejected": {artifact.id: reason for artifact, reason in choice.rejected},
    }


def artifact_values(artifact: Artifact) -> dict[str, Any]:
    """An artifact as JSON values."""
    return {
        **artifact.to_dict(),
        "devices": list(artifact.devices),
        "files": [file.to_dict() for file in artifact.files],
        "quality": artifact.quality.to_dict(),
        "size": artifact.size,
    }
