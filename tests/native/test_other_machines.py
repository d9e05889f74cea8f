"""Other processors and other C libraries compute the same bits: aarch64 under qemu, and musl.

`driver.c` prints a digest of the vectors of each instruction set. The package ziglang compiles it for other machines.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Campaign
from tests.native.compiling import BUILD, IS_X86, compile_and_link, run
from tests.native.test_sanitizers import FORMS, check_digests

TARGETS = {
    "aarch64-linux-musl": ("aarch64", ["qemu-aarch64", "-cpu", "max"], {"neon_dot", "plain"}),
    "x86_64-linux-musl": ("x86_64", [], {"plain"}),
}
"""Target → its machine, the command that runs a program, and the instruction sets that it must have."""


@pytest.mark.parametrize("target", TARGETS)
def test_another_target_computes_the_same_bits(
    target: str, tiny_files: dict[str, Path], tmp_path: Path, campaign: Campaign, request: pytest.FixtureRequest
) -> None:
    machine, emulator, expected = TARGETS[target]
    if not importlib.util.find_spec("ziglang"):
        pytest.skip("the package ziglang is not installed")
    if emulator and not shutil.which(emulator[0]):
        pytest.skip(f"{emulator[0]} is not installed (Debian: qemu-user)")
    if not emulator and not IS_X86:
        pytest.skip("this machine runs no x86-64 programs")
    here = compile_and_link(tmp_path / "here", "driver", compiler=["cc"])
    there = compile_and_link(
        tmp_path / "there", "driver", compiler=BUILD.zig("-target", target), machine=machine, link=("-static",)
    )
    texts = tmp_path / "texts"
    texts.write_bytes("a text\0Naïve café, 12!\0How do I reset my password, and who can tell me?\0".encode())
    jobs = [[str(tiny_files[form]), str(tiny_files["words"]), str(texts)] for form in FORMS]
    if campaign.full:
        real = request.getfixturevalue("real_files")
        jobs += [[str(real[precision]), str(real["words"]), str(texts)] for precision in ("int8", "fp32")]
    began = time.monotonic()
    for files in jobs:
        ours = check_digests(run([str(here), *files, "2", "1", "1"], timeout=3000).stdout)
        other = check_digests(run([*emulator, str(there), *files, "2", "1", "1"], timeout=3000).stdout)
        assert expected <= other.keys()
        assert set(ours.values()) == set(other.values()), files
    campaign.record(f"bits of {target}", models=len(jobs), different=0, seconds=round(time.monotonic() - began))
