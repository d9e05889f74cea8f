"""Any bytes are a file that runs, or a ValueError. Child processes open the files, so that a crash fails a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY
from tests.faults.conftest import Campaign
from tests.native.files import WORDS_FIELDS, make_small_pairs, make_small_unigram, make_weights, make_words, set_field

CAMPAIGNS = {
    "weights-flips": (31, 1),
    "weights-truncations": (0, 0),
    "weights-extremes": (500, 50_000),
    "words-flips": (17, 1),
    "words-truncations": (0, 0),
    "words-extremes": (500, 50_000),
    "words-noise": (1000, 100_000),
    "unigram-flips": (17, 1),
    "unigram-truncations": (0, 0),
    "unigram-extremes": (500, 50_000),
    "unigram-noise": (1000, 100_000),
    "pairs-flips": (17, 1),
    "pairs-truncations": (0, 0),
    "pairs-extremes": (500, 50_000),
    "pairs-noise": (1000, 100_000),
}
"""Campaign of `tests.native.hostile` → its number in `make test` and in `make faults`: how many random choices, or the
step from one bit to the next behind the header."""


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_damaged_files_are_refused_or_run(name: str, tmp_path: Path, campaign: Campaign) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.native.hostile", str(tmp_path), name, str(campaign.size(*CAMPAIGNS[name]))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    case = (tmp_path / "case").read_text("utf-8").strip() if (tmp_path / "case").exists() else ""
    assert done.returncode == 0, f"{name}: exit code {done.returncode} at {case}\n{done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    assert counts["refused"] > 100 or name.endswith("noise")
    assert counts["ran"] > 0 or name.endswith("truncations")
    campaign.record(
        "hostile files of the native engine", **{f"{name}_{key}": count for key, count in counts.items()}, crashes=0
    )


@pytest.mark.parametrize("kind", ["Weights", "WordPiece", "Unigram", "BytePairs"])
def test_a_file_that_is_none_is_refused(modules: dict[str, ModuleType], tmp_path: Path, kind: str) -> None:
    make = getattr(modules["installed"], kind)
    more = () if kind == "Weights" else (16,)
    data = {
        "Weights": make_weights,
        "WordPiece": make_words,
        "Unigram": make_small_unigram,
        "BytePairs": make_small_pairs,
    }[kind]()
    path = tmp_path / "file"
    path.write_bytes(data)
    descriptors = [os.open(path, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)]
    reads, writes = os.pipe()
    closed = os.dup(reads)
    os.close(closed)
    try:
        make(descriptors[0], len(data), *more)
        sizes = (-(1 << 63), -1, 0, 1, 127, 128, len(data) - 1, len(data) + 1, len(data) + 5000, 1 << 50, (1 << 63) - 1)
        for size in sizes:
            with pytest.raises(ValueError, match=r"it has|its|bytes|the file"):
                make(descriptors[0], size, *more)
        for descriptor in (*descriptors[1:], reads, closed, -1):
            with pytest.raises(ValueError, match=r"bytes|its size is unknown"):
                make(descriptor, len(data), *more)
    finally:
        for descriptor in (*descriptors, reads, writes):
            os.close(descriptor)


def test_a_longer_file_than_its_header_says_is_not_read_behind_its_end(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    """The header and the caller agree on a size that the file does not have: a read there would be SIGBUS."""
    data = make_weights()
    path = tmp_path / "file"
    path.write_bytes(data[:4096])
    with open(path, "rb") as file, pytest.raises(ValueError, match=f"it has 4096 bytes, and not {len(data)}"):
        modules["installed"].Weights(file.fileno(), len(data))


@pytest.mark.parametrize("room", [-1, 0, 1, (1 << 16) + 1, (1 << 63) - 1])
def test_a_length_without_room_is_refused(modules: dict[str, ModuleType], tmp_path: Path, room: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(make_words())
    with open(path, "rb") as file, pytest.raises(ValueError, match="max_seq_length"):
        modules["installed"].WordPiece(file.fileno(), path.stat().st_size, room)


def test_an_unknown_instruction_set_is_refused(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(make_weights())
    with open(path, "rb") as file:
        for name in ("", "avx1024", "plain "):
            with pytest.raises(ValueError, match="cannot run the kernels"):
                modules["installed"].Weights(file.fileno(), path.stat().st_size, name)


def test_a_table_that_is_searched_without_end_is_refused(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    """A table without an empty slot would be searched 2^32 times for each piece of a word."""
    path = tmp_path / "file"
    path.write_bytes(set_field(make_words(), "most_probes", (1 << 32) - 1, WORDS_FIELDS))
    with open(path, "rb") as file, pytest.raises(ValueError, match="more slots than there are"):
        modules["installed"].WordPiece(file.fileno(), path.stat().st_size, 16)
