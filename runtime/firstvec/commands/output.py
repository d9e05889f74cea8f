"""What the commands print: aligned text for people, JSON for machines."""

from __future__ import annotations

import json
import os
import sys
from itertools import zip_longest

from firstvec.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from firstvec.bundle.manifest import Manifest


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
        for parts in zip_longest(*row, fillvalue=""):
            columns = enumerate(zip(parts, widths, strict=True))
            padded = [part.rjust(width) if column in right else part.ljust(width) for column, (part, width) in columns]
            sys.stdout.write(f"{indent}{'  '.join(padded)}".rstrip() + "\n")


def _terminal_width() -> int:
    """Return the width of the terminal. A file or a pipe has none, and nothing is wrapped there."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or sys.maxsize
    except (OSError, ValueError):  # ValueError: stdout is closed, or has no descriptor
        return sys.maxsize


def _wrap(line: str, width: int) -> list[str]:
    """Return the line in pieces of at most ``width``. A longer word, for example a path, stays whole."""
    if width < 24 or len(line) <= width:  # in fewer columns wrapped text is harder to read than long lines
        return [line]
    import textwrap

    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)


def print_artifacts(manifest: Manifest, timings: Mapping[str, tuple[float, float] | None] | None = None) -> None:
    """Print a row for each artifact.

    The timings are id → (load, first vector) in milliseconds, or None for an artifact that cannot run here.
    """
    rows = [["artifact", "precision", "ISA", "MB", "cosine", "worst", "max |Δ|"]]
    for artifact in manifest.artifacts:
        quality = artifact.quality
        numbers = [f"{quality.cosine_mean:.5f}", f"{quality.worst_cosine:.4f}", f"{quality.max_abs_diff:.1e}"]
        rows.append([artifact.id, artifact.precision, artifact.isa or "any", f"{artifact.size / 1e6:.1f}", *numbers])
    if timings is not None:
        rows[0] += ["load ms", "first vector ms"]
        for row in rows[1:]:
            timing = timings.get(row[0])
            row += [f"{milliseconds:.0f}" for milliseconds in timing] if timing else ["–", "not here"]
    print_text(f"{manifest.model.name}  ({manifest.root})")
    print_table(rows, right=range(3, len(rows[0])), indent="  ")
    print_table([[artifact.id, "not installed"] for artifact in manifest.absent], indent="  ")
    print_table([[name, f"left out: {reason}"] for name, reason in (manifest.left_out or {}).items()], indent="  ")
