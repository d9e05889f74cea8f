"""The parts of every benchmark's output: the machine, the versions, tables and timelines in Markdown."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from firstvec.machine.profile import ResourceProfile

PACKAGES = (
    *("firstvec", "numpy", "onnxruntime", "tokenizers", "torch", "transformers", "sentence-transformers"),
    *("fastembed", "openvino", "llama-cpp-python"),
)
DASH = "–"
Stage = tuple[str, float, float]
"""Name, begin and end, in milliseconds from the start of the process."""


def machine() -> dict[str, Any]:
    """Return the facts on which the figures depend: the machine, the versions, and the machine's load."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8") if sys.platform == "linux" else ""
    profile = ResourceProfile.detect()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": "".join(re.findall(r"model name\s*: (.+)", cpuinfo)[:1]) or platform.processor(),
        "cores": profile.cpu_count,
        "flags": ", ".join(profile.isa),
        "memory_mb": psutil.virtual_memory().total // 10**6,
        "load_average": round(psutil.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": ", ".join(filter(None, map(installed, PACKAGES))),
    }


def installed(package: str) -> str | None:
    """Return a package with its version, or None if it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table. The first row is the heading. The first column has names, and the other columns have figures."""
    heading, *body = ("| " + " | ".join(map(markdown_text, row)) + " |" for row in rows)
    return "\n".join([heading, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body, ""])


def markdown_list(facts: Mapping[str, Any]) -> str:
    """Return a list of names and values."""
    return "".join(f"- {name}: {markdown_text(str(fact))}\n" for name, fact in facts.items())


def markdown_text(text: str) -> str:
    """Return a text in one line, with the special characters of tables and HTML escaped."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def markdown_timeline(programs: Mapping[str, tuple[float, Sequence[Stage]]]) -> str:
    """Return Gantt charts in mermaid, which GitHub and mkdocs-material draw: a bar for each stage of each program.

    Programs of a second and more have a chart of their own, because they need another scale.

    Args:
        programs: name → milliseconds of the whole process, and its stages.
    """
    charts = []
    for title, is_long in (("Milliseconds from exec", False), ("Milliseconds from exec, slower programs", True)):
        chosen = {name: found for name, found in programs.items() if (found[0] >= 1000) is is_long and found[1]}
        if not chosen:
            continue
        # mermaid parses (x) and shows (%Q) milliseconds of the Unix epoch. A marker of today would be far to the right.
        lines = ["gantt", f"title {title}", "dateFormat x", "axisFormat %Q", "todayMarker off"]
        for name, (ms, stages) in chosen.items():
            lines.append(f"section {_mermaid_text(name)}, {ms:.0f} ms")
            for stage, begin, end in sorted(stages, key=lambda each: each[1]):
                first, last = round(begin), max(round(end), round(begin) + 1)
                lines.append(f"{_mermaid_text(stage)}, {end - begin:.1f} ms :{first}, {last}")
        charts.append("\n".join(["```mermaid", *lines, "```", ""]))
    return "\n".join(charts)


def _mermaid_text(text: str) -> str:
    """Return a text for the name of a section or bar, without mermaid's special characters."""
    return " ".join(re.sub(r"[:;#%{}<>`\"]", " ", text).split())


def write(path: Path, text: str) -> None:
    """Write a file, and print its path on stderr."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    print(f"wrote {path}", file=sys.stderr)
