"""The table of `make bench`: texts per second, the ratio to sentence-transformers, and the worst cosine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from record import DASH, machine, markdown_list, markdown_table, write
from subjects import PEER

FACTS = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--markdown", type=Path, metavar="FILE", help="write the table of throughput, and the machine")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[FACTS] = machine()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for each in session.benchmarks if session is not None else ():
        if "subject" in each.extra_info:
            rows.setdefault(each.extra_info["subject"], {})[each.group] = each.extra_info
    if not rows:
        return
    cases = list(dict.fromkeys(case for row in rows.values() for case in row))
    peer = rows.get(PEER, {})
    body = [[name, *(cell(row.get(case), peer.get(case)) for case in cases)] for name, row in rows.items()]
    table = markdown_table([["program", *cases], *body])
    report = f"Texts per second (× {PEER}; worst cosine to {PEER})\n\n{table}"
    terminalreporter.write_line(f"\n{report}")
    if path := config.getoption("--markdown"):
        write(path, f"{report}\n{markdown_list(config.stash[FACTS])}")


def cell(figures: dict[str, Any] | None, peer: dict[str, Any] | None) -> str:
    """Return the table's cell for one program in one case. A program that was not run has a dash."""
    if figures is None:
        return DASH
    speed = figures["texts per second"]
    ratio = f"{speed / peer['texts per second']:.2f} ×" if peer else DASH
    return f"{speed:.0f} ({ratio}; {figures['worst cosine']:.4f})"
