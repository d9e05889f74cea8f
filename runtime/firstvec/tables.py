"""What the command line shows: tables for people, plain values for `--json`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from firstvec import __version__
from firstvec.errors import FirstvecError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from firstvec.doctor import Diagnosis
    from firstvec.manifest import Artifact, Manifest
    from firstvec.selection import Choice


class _Printable:
    """What is shown, without what a terminal would obey in the names of files and folders."""

    def __init__(self, shown: ConsoleRenderable) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._shown, options):
            # The console's own codes are in the style and the control codes, not in the text.
            yield segment._replace(text=printable(segment.text)) if not segment.control else segment


class _Names(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Printable(each) for each in renderables]


out = Console(highlight=False, soft_wrap=True, markup=False)  # paths and reasons may hold square brackets
out.push_render_hook(_Names())
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


def choice_table(choice: Choice, *, verified_before: bool | None, self_test_passed_before: bool | None) -> Table:
    """Which artifact was chosen, what was proven of it before, and why each other one was not chosen."""
    files = (
        "files verified before"
        if verified_before
        else f"{choice.artifact.size / 1e6:.1f} MB to be hashed at the first load"
    )
    if self_test_passed_before is not None:
        files += "; self-test passed before" if self_test_passed_before else "; self-test at the first load"
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(Text("✓", "green"), choice.artifact.id, f"{choice.reason}; on {choice.device}; {files}")
    for artifact in choice.candidates[1:]:
        table.add_row(" ", artifact.id, "next, if the one above fails to load")
    for artifact, reason in choice.rejected:
        table.add_row(Text("✗", "red"), artifact.id, reason)
    return table


def artifact_values(artifact: Artifact) -> dict[str, Any]:
    """An artifact as JSON values."""
    return {
        **artifact.to_dict(),
        "devices": list(artifact.devices),
        "files": [file.to_dict() for file in artifact.files],
        "quality": artifact.quality.to_dict(),
        "size": artifact.size,
    }


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what `firstvec doctor` found."""
    profile = diagnosis.profile
    storage = {True: "not rotational", False: "rotational", None: "unknown"}[profile.is_ssd]
    accelerators = f"CUDA {'yes' if profile.has_cuda else 'no'}, MPS {'yes' if profile.has_mps else 'no'}"
    facts = {
        "firstvec": f"{__version__}, Python {sys.version.split()[0]}",
        "processor": f"{profile.machine}, {profile.cpu_count} usable cores",
        "instruction sets": ", ".join(profile.isa) or "none that INT8 needs",
        "memory": f"{profile.available_memory_mb:.0f} MB available",
        "storage": storage,
        "accelerators": f"{accelerators}; recommended device {profile.recommended_device}",
        "engines": ", ".join(f"{name} {version or 'not installed'}" for name, version in profile.engines),
        "onnxruntime": diagnosis.onnxruntime,
        "cache": diagnosis.cache,
        "bundles from": "\n".join(diagnosis.searched),
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(name, value)
    out.print(table)
    for root, strategies in diagnosis.choices.items():
        out.print(f"\n{root}", style="bold")
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
        for strategy, found in strategies.items():
            if isinstance(found, FirstvecError):
                table.add_row(strategy.name, Text("none", "red"), str(found))
            else:
                table.add_row(strategy.name, found.artifact.id, f"{found.reason}; on {found.device}")
        for test in diagnosis.self_tests.get(root, ()):
            colour = {"passed": "green", "not run": ""}.get(test.status, "red")
            table.add_row("self-test", test.artifact, Text.assemble((test.status, colour), f": {test.says}"))
        out.print(table)
    for folder, reason in diagnosis.broken.items():
        out.print(Text.assemble(("\nbroken bundle ", "red"), f"{folder}: {reason}"))
    if not diagnosis.choices:
        out.print("\nno bundle was found", style="red", end="")
        out.print(": build one with `firstvec build`, or set FIRSTVEC_ARTIFACTS")
    for each in diagnosis.missing:
        mark = ("missing", "red") if each.required else ("optional", "")
        out.print(Text.assemble(mark, f": {each.needed_for}: pip install '{each.install}'"))
