"""Ctrl-C finishes the shard under way, and a run in a thread leaves the signals alone."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from firstvec.bulk import shards
from firstvec.bulk.interrupts import stop_on_ctrl_c
from firstvec.bulk.progress import Progress
from tests.runtime.bulk.conftest import TEXTS, Embed, files_of, write_data_set, write_jsonl


def test_ctrl_c_finishes_the_shard(
    tmp_path: Path, embed_tiny: Embed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS * 4)
    embed_tiny(tmp_path / "a.jsonl", tmp_path / "whole")
    real, written = shards.write_whole, []

    def write(path: str, *more: object) -> dict[str, object]:
        written.append(path)
        if len(written) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(path, *more)  # type: ignore[arg-type]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(shards, "write_whole", write)
        with pytest.raises(KeyboardInterrupt):
            embed_tiny(tmp_path / "a.jsonl", tmp_path / "out", quiet=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    stopped_with = len(written)
    assert 3 <= stopped_with < 19
    assert "press Ctrl-C again to end at once" in capsys.readouterr().err
    summary = embed_tiny(tmp_path / "a.jsonl", tmp_path / "out")
    assert summary.shards_done_before == stopped_with
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_handler_of_the_program_stays() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stopping = threading.Event()
        with stop_on_ctrl_c(stopping, Progress(0), "stop"):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
        assert not stopping.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_another_thread_leaves_the_signals_alone(tmp_path: Path, embed_tiny: Embed) -> None:
    write_data_set(tmp_path / "a.jsonl")
    before, found = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: found.append(embed_tiny(tmp_path / "a.jsonl", tmp_path / "out")))
    thread.start()
    thread.join()
    assert found[0].complete
    assert signal.getsignal(signal.SIGINT) is before
