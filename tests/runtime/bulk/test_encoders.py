"""The model in this process, and in worker processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from firstvec.bulk.encoders import LocalEncoder, WorkerEncoder, open_encoders
from firstvec.bulk.job import make_job
from firstvec.errors import BundleNotFound, InputError, WorkerError


def test_a_worker_computes_what_this_process_computes(tiny_built: Path) -> None:
    job = make_job("-", "out", model=tiny_built, workers=2)
    local, workers = LocalEncoder(job), open_encoders(job)
    try:
        assert len(workers) == 2
        for worker in workers:
            assert worker.about == local.about
            assert bytes(worker.encode(["one", "zwei é"])) == bytes(local.encode(["one", "zwei é"]))
    finally:
        for each in (local, *workers):
            each.close()


def test_the_error_of_a_load_is_the_error_here(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match="no-such-model"):
        open_encoders(make_job("-", "out", model="no-such-model", workers=2))


def test_a_frozen_app_does_not_start_itself_as_a_worker(monkeypatch: pytest.MonkeyPatch, tiny_built: Path) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(InputError, match="workers is 2: a frozen app has no Python"):
        open_encoders(make_job("-", "out", model=tiny_built, workers=2))
    [local] = open_encoders(make_job("-", "out", model=tiny_built))
    local.close()


def test_an_error_of_a_text_leaves_the_worker_usable(tiny_built: Path) -> None:
    [worker, other] = open_encoders(make_job("-", "out", model=tiny_built, prompt_name="none", workers=2))
    try:
        with pytest.raises(InputError, match="Prompt name 'none' not found"):
            worker.encode(["one"])
        with pytest.raises(InputError, match="Prompt name 'none' not found"):
            worker.encode(["two"])
    finally:
        worker.close()
        other.close()


def test_a_worker_that_is_killed_is_a_typed_error(tiny_built: Path) -> None:
    [worker, other] = open_encoders(make_job("-", "out", model=tiny_built, workers=2))
    try:
        assert isinstance(worker, WorkerEncoder)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"ended \(signal 9\); there may be too little memory"):
            worker.encode(["one"])
    finally:
        worker.close()
        other.close()
