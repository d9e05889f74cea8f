"""What the commands print: aligned text for people, JSON for machines."""

from __future__ import annotations

import json
import os
import sys

from firstvec.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from firstvec.bundle.manifest import Artifact, Manifest


def print_json(values: object) -> None:
    """Print JSON values."""
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def print_text(text: str = "") -> None:
    """Print a line, or several, without what a terminal would obey in the names of files and folders."""
    sys.stdout.write(printable(text) + "\n")


def print_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: str = "") -> None:
    """Print rows with their columns aligned: those of ``right`` to the right, the others to the left.

    A cell may have several lines. The last column is not padded. On a terminal its words are wrapped within the column,
    and nothing is cut off.
    """
    if not rows:
        return
    cells = [[printable(cell).split("\n") for cell in row] for row in rows]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(cells[0]))]
    last_width = _terminal_width() - len(indent) - sum(width + 2 for width in widths[:-1])
    for row in cells:
        if len(widths) - 1 not in right:
            row[-1] = [part for line in row[-1] for part in _wrap(line, last_width)]
        for number in range(max(map(len, row))):
            line = [cell[number] if number < len(cell) else "" for cell in row]
            padded = [
                cell.rjust(widths[column]) if column in right else cell.ljust(widths[column])
                for column, cell in enumerate(line)
            ]
            sys.stdout.write(f"{indent}{'  '.join(padded)}".rstrip() + "\n")


def _terminal_width() -> int:
    """Return the width of the terminal. A file or a pipe has none, and nothing is wrapped there."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or sys.maxsize
    except (OSError, ValueError):  # ValueError: stdout is closed, or has no descriptor
        return sys.maxsize


_NARROWEST = 24
"""Columns. In fewer columns than that wrapped text is harder to read than long lines."""


def _wrap(line: str, width: int) -> list[str]:
    """Return the line in pieces of at most ``width``. A longer word, for example a path, stays whole."""
    if width < _NARROWEST or len(line) <= width:
        return [line]
    import textwrap

    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)


def print_artifacts(manifest: Manifest, timings: Mapping[str, tuple[float, float] | None] | None = None) -> None:
    """Print a row for each artifact.

    Args:
        manifest: the bundle's.
        timings: id → (load, first vector) in milliseconds. None for an artifact that cannot run here.
    """
    heads = ["artifact", "precision", "ISA", "MB", "cosine", "worst", "max |Δ|"]
    heads += ["load ms", "first vector ms"] if timings is not None else []
    rows = [heads]
    for artifact in manifest.artifacts:
        quality = artifact.quality
        row = [
            artifact.id,
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
        rows.append(row)
    print_text(f"{manifest.model.name}  ({manifest.root})")
    print_table(rows, right=range(3, len(heads)), indent="  ")


def artifact_values(artifact: Artifact) -> dict[str, Any]:
    """Return an artifact as JSON values."""
    return {
        **artifact.to_dict(),
        "devices": list(artifact.devices),
        "files": [file.to_dict() for file in artifact.files],
        "quality": artifact.quality.to_dict(),
        "size": artifact.size,
    }
