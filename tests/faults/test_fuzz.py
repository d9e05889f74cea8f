"""Any bytes are read, or refused with firstvec's own error: manifests, self-tests, notes and vocabularies."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstvec.bundle.manifest import Manifest
from firstvec.engines.table import ENGINES, INSTRUCTION_SETS, PRECISIONS, known_devices
from firstvec.errors import ManifestError
from tests.conftest import REPOSITORY
from tests.faults.conftest import Campaign
from tests.faults.fuzz import TARGETS, edited, parse_manifest, seeds, words

RUNS = {
    "manifest bytes": 850_000,
    "manifest edits": 160_000,
    "self-test": 100_000,
    "metadata note": 30_000,
    "vocabulary": 200_000,
}
"""Target → its executions in a campaign. All targets together have more than a million."""
_A_PROCESS = 50_000
"""Executions of one process. A crash ends only one process, and each process starts with another seed."""


def damaged(target: str, count: int, source: random.Random) -> Iterator[bytes]:
    """Yield the target's seeds with a few of their bytes changed, cut out, doubled, or replaced by a word."""
    originals, vocabulary = [*seeds(target)], [word.encode() for word in words()]
    for _ in range(count):
        data = bytearray(source.choice(originals))
        for _ in range(source.randint(1, 4)):
            at, end = sorted(source.choices(range(len(data) + 1), k=2))
            kind = source.random()
            if kind < 0.4:
                data[at : at + 1] = source.randbytes(1)
            elif kind < 0.6:
                data[at : at + source.randint(0, 4)] = source.choice(vocabulary)
            elif kind < 0.8:
                data[at:at] = source.randbytes(source.randint(1, 8))
            elif kind < 0.9:
                del data[at : min(end, at + 64)]
            else:
                data[at:at] = data[at : min(end, at + 64)]
        yield bytes(data)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_takes_bytes_with_random_damage(
    target: str, campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The targets set a cache of their own. With this line pytest puts the session's cache back afterwards.
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "unused"))
    run = TARGETS[target](tmp_path)
    for data in (*seeds(target), *damaged(target, campaign.size(500, 10_000), random.Random(target))):
        run(data)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (make faults)")
def test_a_target_takes_the_bytes_that_coverage_leads_to(campaign: Campaign, tmp_path: Path) -> None:
    jobs = [
        (target, start, min(_A_PROCESS, count - start))
        for target, runs in RUNS.items()
        for count in [campaign.size(1_000, runs)]
        for start in range(0, count, _A_PROCESS)
    ]
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        executed = [*pool.map(lambda job: _fuzz(*job, tmp_path), jobs)]
    totals = {
        name: sum(runs for (target, *_), runs in zip(jobs, executed, strict=True) if target == name) for name in RUNS
    }
    assert all(totals[name] >= campaign.size(1_000, runs) for name, runs in RUNS.items())
    campaign.record(
        "fuzzing of what is read, guided by coverage",
        executions=sum(totals.values()),
        untyped=0,
        seconds=round(time.monotonic() - began),
        **{name.replace(" ", "_").replace("-", "_"): count for name, count in totals.items()},
    )


def _fuzz(target: str, seed: int, runs: int, folder: Path) -> int:
    """Fuzz in one process. Return the number of executions."""
    own = folder / f"{target}-{seed}"
    options = [f"-runs={runs}", f"-seed={seed + 1}", "-max_len=12000", "-timeout=10", "-rss_limit_mb=512"]
    done = subprocess.run(
        # A shell starts it, because a process inherits the peak of memory, which libFuzzer limits, from its parent.
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "tests.faults.fuzz_guided", target, own, *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=3600,
        check=False,
    )
    found = [path.name for path in own.iterdir() if path.name.startswith(("crash", "timeout", "oom", "slow"))]
    assert (done.returncode, found) == (0, []), f"{target}: {own}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    counted = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert counted, done.stderr[-3000:]
    return int(counted[1])


# --- Manifests that are valid by construction ------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
SEGMENTS = st.from_regex(r"[a-z0-9_-]([A-Za-z0-9._-]{0,6}[A-Za-z0-9_-])?x", fullmatch=True)
COSINES = st.floats(-1, 1) | st.integers(-1, 1)
FORMATS = tuple(dict.fromkeys(name for engine in ENGINES.values() for name in engine.formats))
VERSIONS = st.lists(st.integers(0, 999_999_999), min_size=1, max_size=4)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a manifest of any shape that follows every rule of artifacts/FORMAT.md.

    Formats, engines, precisions, instruction sets and devices are known or unknown to this firstvec.
    """
    stem = 0

    def a_file() -> dict[str, Any]:
        # Each name of the path has a number, so that it differs from every other file and folder.
        nonlocal stem
        stem += 1
        path = "/".join(f"{segment}{stem}" for segment in draw(st.lists(SEGMENTS, min_size=1, max_size=3)))
        return {"path": path, "size": draw(st.integers(0, 1 << 40)), "sha256": draw(DIGESTS)}

    def an_artifact(index: int) -> dict[str, Any]:
        low = draw(VERSIONS)
        quality = {
            **{name: draw(COSINES) for name in ("cosine_mean", "cosine_min", "cosine_p1", "batch_cosine_min")},
            "max_abs_diff": draw(st.floats(0, 1e300)),
            "neighbour_overlap": draw(st.floats(0, 1)),
            "sentences": draw(st.integers(1, 1 << 31)),
            "measured_with": draw(NAMES),
            "spearman": draw(st.floats(-100, 100)),
            "odd_cosine_min": draw(st.none() | COSINES),
            "matryoshka": draw(st.none() | st.dictionaries(st.sampled_from(["8", "64"]), st.floats(0, 1))),
        }
        at_least = draw(
            st.sets(st.sampled_from(["cosine_mean", "cosine_min", "cosine_p1", "neighbour_overlap", "spearman"]))
        )
        return {
            "id": f"{draw(NAMES)}{index}",
            "format": draw(st.sampled_from(FORMATS) | NAMES),
            "precision": draw(st.sampled_from(PRECISIONS) | NAMES),
            "engine": draw(st.sampled_from([*ENGINES]) | NAMES),
            "engine_min": ".".join(map(str, low)),
            "engine_below": ".".join(
                map(str, [min(low[0] + 1, 999_999_999), 0] if low[0] < 999_999_999 else [*low, 1])
            ),
            "devices": draw(st.lists(st.sampled_from(known_devices()) | NAMES, min_size=1, max_size=3)),
            "isa": draw(st.sampled_from([*INSTRUCTION_SETS]) | NAMES | st.none()),
            "isa_reason": draw(NAMES | st.none()),
            "batch_invariant": draw(st.booleans()),
            "files": [a_file() for _ in range(draw(st.integers(1, 3)))],
            "quality": quality
            | {
                "thresholds": {name: quality[name] - draw(st.floats(0, 0.5)) for name in at_least}
                | {"max_abs_diff": quality["max_abs_diff"] + draw(st.floats(0, 0.5))}
            },
        }

    prompts = draw(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=3))
    ids = st.lists(st.integers(0, 1 << 31), max_size=3)
    wordpiece = {
        "vocabulary": a_file(),
        "tables": a_file() if draw(st.booleans()) else None,
        "lowercase": draw(st.booleans()),
        "strip_accents": draw(st.booleans()),
        "unk_id": draw(st.integers(0, 1 << 31)),
        "max_input_chars_per_word": draw(st.integers(1, 1 << 20)),
        "prefix_ids": draw(ids),
        "suffix_ids": draw(ids),
        "added_tokens": draw(st.lists(NAMES, max_size=3)),
    }
    support_files = [a_file() for _ in range(draw(st.integers(0, 3)))]
    ranges = (
        None
        if not support_files
        else {
            "file": support_files[-1]["path"],
            "neighbour_overlap": draw(st.dictionaries(st.sampled_from(["int8", "binary"]), st.floats(0, 1))),
        }
    )
    return {
        "format": "firstvec-bundle",
        "format_version": f"1.{draw(st.integers(0, 999_999_999))}",
        "model": {
            **{name: draw(NAMES) for name in ("name", "source", "architecture", "pooling_mode")},
            "revision": draw(NAMES | st.none()),
            "source_sha256": draw(DIGESTS),
            "embedding_dim": draw(st.integers(1, 1 << 20)),
            "max_seq_length": draw(st.integers(6, 1 << 20)),
            "normalized": draw(st.booleans()),
            "pad_token_id": draw(st.integers(0, 1 << 31)),
            "prompts": prompts,
            "default_prompt_name": draw(st.sampled_from([*prompts, None])),
            "license": draw(st.sampled_from(["Apache-2.0", None])),
        },
        "tokenizer": a_file(),
        "wordpiece": draw(st.sampled_from([wordpiece, None])),
        "quick_tokenizer": {"family": draw(NAMES), "tables": a_file()} if draw(st.booleans()) else None,
        "artifacts": [an_artifact(index) for index in range(draw(st.integers(1, 4)))],
        "left_out": draw(st.sampled_from([{"native-fp32": "a reason"}, None])),
        "self_test": a_file() if draw(st.booleans()) else None,
        "support_files": support_files,
        "vector_ranges": draw(st.sampled_from([ranges, None])),
        "built_with": draw(st.dictionaries(NAMES, NAMES, max_size=3)),
        "inputs_sha256": draw(DIGESTS),
    }


def _examples(few: int, campaign: Campaign) -> Any:
    return settings(
        max_examples=campaign.size(few, 20 * few),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )


def test_a_valid_manifest_is_parsed_and_written_as_it_was(campaign: Campaign) -> None:
    @_examples(60, campaign)
    @given(manifests())
    def check(value: dict[str, Any]) -> None:
        manifest = Manifest.parse(json.dumps(value).encode())
        written = json.loads(manifest.to_json())
        assert written == value | {"format_version": "1.2", "checksum": written["checksum"]}
        assert Manifest.parse(manifest.to_json()) == manifest
        assert Manifest.parse(json.dumps(value, ensure_ascii=False).encode()) == manifest
        parse_manifest(json.dumps(value).encode())

    check()


def test_an_edited_valid_manifest_is_parsed_or_refused(campaign: Campaign) -> None:
    outcomes = {"parsed": 0, "refused": 0}

    @_examples(60, campaign)
    @given(manifests(), st.binary(min_size=4, max_size=12))
    def check(value: dict[str, Any], edits: bytes) -> None:
        data = json.dumps(edited(value, edits)).encode()
        try:
            manifest = Manifest.parse(data)
        except ManifestError:
            outcomes["refused"] += 1
        else:
            outcomes["parsed"] += 1
            assert Manifest.parse(manifest.to_json()) == manifest

    check()
    assert outcomes["refused"] > 0
    # Some dozens of edits give one manifest that is still valid, so a short run may have none.
    assert outcomes["parsed"] > 0 or not campaign.full
