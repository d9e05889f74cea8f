"""The table of `make bench`: texts per second and the worst cosine, a row a program, a column a case."""

from __future__ import annotations

from typing import Any

import pytest


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
    terminalreporter.write_line("\ntexts per second (worst cosine to sentence-transformers)")
    terminalreporter.write_line("| program | " + " | ".join(cases) + " |")
    terminalreporter.write_line("|---" + "|---:" * len(cases) + "|")
    for name, row in rows.items():
        cells = (
            f"{row[case]['texts per second']:.0f} ({row[case]['worst cosine']:.4f})" for case in cases if case in row
        )
        terminalreporter.write_line(f"| {name} | " + " | ".join(cells) + " |")
