"""What a run shows."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from firstvec.bulk import progress as progress_module
from firstvec.bulk.progress import BarProgress, LogProgress, make_progress


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress(100, quiet=True) as progress:
        progress.advance(5, 50)
        progress.say("something")
    assert capsys.readouterr() == ("", "")


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now)
    with make_progress(4_000_000, quiet=False) as progress:
        assert isinstance(progress, LogProgress)
        progress.begin_at(1_000_000)
        for _ in range(20):
            now += 1.0
            progress.advance(1000, progress.bytes + 100_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "firstvec embed: 10,000 rows (50% of 4.0 MB), 1,000 rows/s, 0:20 left",
        "firstvec embed: 20,000 rows (75% of 4.0 MB), 1,000 rows/s, 0:10 left",
    ]


def test_of_stdin_nobody_knows_the_end() -> None:
    progress = make_progress(0, quiet=True)
    progress.advance(10, 0)
    assert progress.seconds_left() is None
    assert "%" not in progress.words()


def test_a_terminal_gets_a_bar() -> None:
    code = (
        "from firstvec.bulk.progress import BarProgress, make_progress\n"
        "with make_progress(100, quiet=False) as progress:\n"
        "    assert isinstance(progress, BarProgress)\n"
        "    progress.advance(5, 50)\n"
        "    progress.say('a message [1]')\n"
    )
    parent, child = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stderr=child, check=False)
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert done.returncode == 0
    assert "5 rows (50%" in shown
    assert "a message [1]" in shown


def test_without_rich_a_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    found = make_progress(100, quiet=False)
    assert isinstance(found, LogProgress)
    assert not isinstance(found, BarProgress)
