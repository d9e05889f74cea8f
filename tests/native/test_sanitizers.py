"""The engine under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer and memcheck, and guided fuzzing.

`driver.c` runs the engine without Python: several callers at once, with several threads each.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Campaign
from tests.native.compiling import compile_and_link, run
from tests.native.files import (
    make_small_pairs,
    make_small_unigram,
    make_small_words,
    make_weights,
    split_pairs,
    split_unigram,
    split_words,
)
from tests.native.hostile import SMALLEST, TEXTS

SANITIZERS = {
    "address and undefined": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
FORMS = ("int8", "int8-cls", "int8-tanh", "fp32", "fp32-relu")

# A sanitizer places its memory where randomized addresses of Linux 6 may already lie.
FIXED_ADDRESSES = ["setarch", platform.machine(), "--addr-no-randomize"]


@pytest.mark.parametrize("name", SANITIZERS)
def test_a_sanitizer_finds_nothing(name: str, tiny_files: dict[str, Path], tmp_path: Path, campaign: Campaign) -> None:
    flags = (*SANITIZERS[name], "-O1", "-g", "-fno-omit-frame-pointer")
    driver = compile_and_link(tmp_path / "driver", "driver", compiler=["gcc"], flags=flags)
    began, digests = time.monotonic(), 0
    for form in FORMS if campaign.full else ("int8", "fp32"):
        rounds, callers = campaign.size(1, 3), campaign.size(4, 8)
        command = [*FIXED_ADDRESSES, str(driver), *file_names(tiny_files, form), "4", str(callers), str(rounds)]
        done = run(command, timeout=3000, env=os.environ | OPTIONS)
        assert done.stderr == ""
        digests += len(check_digests(done.stdout))
    seconds = round(time.monotonic() - began)
    campaign.record(f"sanitizer: {name}", runs=digests, findings=0, seconds=seconds)


def file_names(files: dict[str, Path], form: str) -> list[str]:
    return [str(files[form]), str(files["words"]), str(files["texts"])]


def check_digests(output: str) -> dict[str, str]:
    """Return instruction set → digest of its vectors. All must be equal."""
    digests = {line.split()[0]: line.split(maxsplit=1)[1] for line in output.splitlines()}
    assert len(set(digests.values())) == 1, output
    return digests


def test_memcheck_finds_nothing(tiny_files: dict[str, Path], tmp_path: Path, campaign: Campaign) -> None:
    """Valgrind knows no AVX-512, so the driver chooses AVX2 and plain C by itself."""
    if not campaign.full:
        pytest.skip("memcheck runs in make faults only")
    assert shutil.which("valgrind"), "install valgrind"
    driver = compile_and_link(tmp_path / "driver", "driver", compiler=["gcc"], flags=("-O2", "-g"))
    for form in FORMS:
        command = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=all"]
        done = run([*command, str(driver), *file_names(tiny_files, form), "3", "2", "1"], timeout=3000)
        assert done.stderr == ""
        assert "avx512_vnni" not in check_digests(done.stdout)
    campaign.record("memcheck of the native engine", files=len(FORMS), findings=0)


# --- Fuzzing, guided by coverage -------------------------------------------------------------------------------------

RUNS = {
    "fuzz_weights": (20_000, 2_000_000),
    "fuzz_tokenizer": (100_000, 10_000_000),
    "fuzz_unigram": (100_000, 10_000_000),
    "fuzz_byte_pairs": (100_000, 10_000_000),
}
"""Driver → its executions in `make test` and in `make faults`."""
SOURCES = {
    "fuzz_weights": (),
    "fuzz_tokenizer": ("wordpiece",),
    "fuzz_unigram": ("unigram",),
    "fuzz_byte_pairs": ("byte_pairs",),
}
FUZZED = (
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-O1", "-g"),
    # These checks take clang minutes for the kernels' unrolled loops. gcc's run of the driver has them.
    "-fno-sanitize=alignment,null,pointer-overflow,object-size",
)


def words_seed() -> tuple[bytes, dict[str, bytes], tuple[str, ...]]:
    data = make_small_words()
    return data, split_words(data), ("slots", "tokens", "strings", "added")


def unigram_seed() -> tuple[bytes, dict[str, bytes], tuple[str, ...]]:
    data = make_small_unigram()
    return data, split_unigram(data), ("nodes", "scores", "left")


def pairs_seed() -> tuple[bytes, dict[str, bytes], tuple[str, ...]]:
    data = make_small_pairs()
    return data, split_pairs(data), ("bytes", "slots", "left")


TABLES = {"fuzz_tokenizer": words_seed, "fuzz_unigram": unigram_seed, "fuzz_byte_pairs": pairs_seed}
"""Driver → a small file, its arrays, and the names of the arrays before that of the pages."""


def seeds(target: str) -> list[bytes]:
    if target == "fuzz_weights":
        forms: list[dict[str, int]] = [
            {},
            {"pooling": 1},
            {"activation": 2},
            {"activation": 3},
            {"heads": 2, "layers": 2},
        ]
        files = [make_weights(precision=precision, **SMALLEST | form) for precision in (0, 1) for form in forms]
        return [data[:size] for data in files for size in (160, 700)] + files[5:6]
    data, arrays, before_pages = TABLES[target]()
    front = b""
    for name in before_pages:
        front += bytes(-len(front) % 64) + arrays[name]
    front += bytes(-len(front) % 64)
    texts = [text.encode()[:255] for text in TEXTS if text.isprintable()]
    return [
        data[:128]
        + bytes([len(text)])
        + text
        + front
        + arrays["classes" if "classes" in arrays else "characters"][:512]
        + bytes(16)
        for text in texts
    ]


@pytest.mark.parametrize("target", RUNS)
def test_fuzzing_finds_nothing(target: str, tmp_path: Path, campaign: Campaign) -> None:
    if not campaign.full and not can_fuzz(tmp_path):
        pytest.skip("clang with libFuzzer is not installed (make faults)")
    program = compile_and_link(tmp_path / target, target, compiler=["clang"], flags=FUZZED, only=SOURCES[target])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(target)):
        (corpus / str(number)).write_bytes(seed)
    count = campaign.size(*RUNS[target])
    # libFuzzer's limit of resident memory is off because a child starts with the peak of the process that made it.
    limits = ["-max_len=4200", "-timeout=20", "-rss_limit_mb=0", "-malloc_limit_mb=512"]
    options = [f"-runs={count}", "-seed=1", *limits, f"-artifact_prefix={tmp_path}/"]
    began = time.monotonic()
    done = run([str(program), *options, str(corpus)], timeout=3600)
    executed = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert executed, done.stderr[-3000:]
    assert int(executed[1]) >= count
    covered = re.findall(r"cov: (\d+)", done.stderr)
    campaign.record(
        f"guided fuzzing: {target}",
        executions=int(executed[1]),
        findings=0,
        seconds=round(time.monotonic() - began),
        covered_edges=int(covered[-1]),
    )


def can_fuzz(folder: Path) -> bool:
    """Say whether clang can link libFuzzer."""
    source = folder / "empty.c"
    source.write_text("int LLVMFuzzerTestOneInput(const char *b, long n) { return !b && n; }\n", "ascii")
    if not shutil.which("clang"):
        return False
    command = ["clang", "-fsanitize=fuzzer,address", str(source), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
