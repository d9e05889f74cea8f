"""What every benchmark writes down: the machine, the versions, and tables in Markdown."""

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

from firstvec.hardware import ResourceProfile

PACKAGES = (
    *("firstvec", "numpy", "onnxruntime", "tokenizers", "torch", "transformers", "sentence-transformers"),
    *("fastembed", "openvino", "llama-cpp-python"),
)


def machine() -> dict[str, Any]:
    """Return what the figures depend on: machine, versions, and what else runs as the benchmark begins."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8") if sys.platform == "linux" else ""
    profile = ResourceProfile.detect()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": "".join(re.findall(r"model name\s*: (.+)", cpuinfo)[:1]) or platform.processor(),
        "cores": profile.cpu_count,
        "flags": ", ".join(profile.isa),
        "memory_mb": psutil.virtual_memory().total // 10**6,
        "load_average": psutil.getloadavg()[0],
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
    """Return a table, the first row its heading, the first column names, the others figures."""
    heading, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([heading, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body, ""])


def markdown_list(facts: Mapping[str, Any]) -> str:
    """Return a list of names and values."""
    return "".join(f"- {name}: {fact}\n" for name, fact in facts.items())


def write(path: Path, text: str) -> None:
    """Write a report, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    print(f"wrote {path}", file=sys.stderr)
