"""What a long transfer shows: a bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from firstvec_build.shipping import progress
from firstvec_build.shipping.progress import TransferDisplay, behind


def test_the_bytes_of_one_file_count_behind_those_of_others() -> None:
    seen: list[tuple[int, int]] = []
    report = behind(lambda done, total: seen.append((done, total)), 100, 1000)
    report(0)
    report(7)
    assert seen == [(100, 1000), (107, 1000)]


def test_a_log_gets_a_plain_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 5.0, 11.0, 11.0, 12.0, 30.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with TransferDisplay("pull", silent=False) as display:
        for done in (1_000_000, 2_500_000, 3_000_000, 1_234_000_000):
            display.report(done, 2_000_000_000)
        display.say("waiting")
    assert capsys.readouterr() == (
        "",
        "firstvec pull: 2.5 of 2,000.0 MB\nfirstvec pull: 1,234.0 of 2,000.0 MB\nfirstvec pull: waiting\n",
    )


def test_a_silent_display_shows_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with TransferDisplay("pull", silent=True) as display:
        display.report(1, 2)
        display.say("waiting")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    try:
        with os.fdopen(follower, "w", buffering=1) as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            monkeypatch.setenv("TERM", "xterm")
            with TransferDisplay("push", silent=False) as display:
                display.report(12_000_000, 24_000_000)
                display.say("waiting")
            shown = os.read(leader, 1 << 16).decode()
    finally:
        os.close(leader)
    assert "12.0/24.0 MB" in shown
    assert "firstvec push: waiting" in shown
