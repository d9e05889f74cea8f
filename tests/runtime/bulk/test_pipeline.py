"""Reading, computing and writing at once: the same bytes with any number of workers, and nothing left behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import pytest

from firstvec.errors import RowError
from tests.runtime.bulk.conftest import TEXTS, Embed, files_of, write_data_set, write_jsonl


@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_workers_write_the_same_bytes(output: str, tmp_path: Path, embed_tiny: Embed) -> None:
    write_data_set(tmp_path / "a.jsonl")
    for folder, workers in (("one", 1), ("three", 3)):
        (tmp_path / folder).mkdir()
        embed_tiny(tmp_path / "a.jsonl", tmp_path / folder / output, workers=workers)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")


def test_no_thread_and_no_descriptor_is_left(tmp_path: Path, embed_tiny: Embed) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*TEXTS, None])
    counts = []
    for number in range(4):
        with pytest.raises(RowError):
            embed_tiny(tmp_path / "a.jsonl", tmp_path / f"failed{number}")
        embed_tiny(tmp_path / "a.jsonl", tmp_path / f"done{number}", on_error="skip")
        time.sleep(0.3)
        gc.collect()  # a model that nobody refers to any more has open files until then
        counts.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    assert counts[-1] == counts[1], counts
