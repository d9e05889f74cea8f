"""The processor: its instruction sets and its identity, from Linux's descriptions of processors of all kinds."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.engines.table import INSTRUCTION_SETS, InstructionSet
from firstvec.machine import darwin, processor
from firstvec.machine.profile import ResourceProfile
from firstvec.options import Options
from firstvec.selection import cannot_run, select
from tests.manifests import artifact, document
from tests.runtime.machine.conftest import Files, Machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's system files")

FLAGS = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr sse sse2 ht syscall nx lm ssse3 fma sse4_1 sse4_2 avx f16c"


def cpuinfo(flags: str) -> str:
    """Return ``/proc/cpuinfo`` of two processors, with lines that look like the line of flags and are other lines."""
    other = "vmx flags\t: vnmi avx2 avx512_vnni\n"
    processor = f"vendor_id\t: GenuineIntel\nfpu\t\t: yes\n{other}flags\t\t: {flags}\n{other}\n"
    return "".join(f"processor\t: {number}\n{processor}" for number in range(2))


@pytest.mark.parametrize(
    ("family", "flags", "expected"),
    [
        ("x86_64", FLAGS, ()),
        ("x86_64", f"{FLAGS} avx2 bmi2", ("avx2",)),
        ("x86_64", f"{FLAGS} avx2 avx512f avx512bw avx512vl", ("avx2",)),
        ("x86_64", f"{FLAGS} avx2 avx512f avx512_vnni amx_tile", ("avx2", "avx512_vnni")),
        ("x86_64", f"avx512_vnni {FLAGS} avx2", ("avx2", "avx512_vnni")),
        ("x86_64", f"{FLAGS} avx2 avx_vnni", ("avx2",)),
        ("x86_64", f"{FLAGS} xavx2 avx2x avx512_vnni2", ()),
        ("AMD64", f"{FLAGS} avx2", ("avx2",)),
        ("x86_64", "", ()),
        ("riscv64", f"{FLAGS} avx2", ()),
        ("ppc64le", "", ()),
        ("unknown", "", ()),
    ],
)
def test_the_instruction_sets_are_read_from_the_cpus_flags(
    files: Files, machine: Machine, family: str, flags: str, expected: tuple[str, ...]
) -> None:
    machine(family)
    files["/proc/cpuinfo"] = cpuinfo(flags)
    assert processor.instruction_sets() == expected
    profile = ResourceProfile.detect()
    assert (profile.isa, profile.machine) == (expected, family)


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ARM64"])
def test_64_bit_arm_is_recognized_by_its_name(files: Files, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(processor, "machine", lambda: machine)
    files["/proc/cpuinfo"] = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"
    assert processor.instruction_sets() == ("arm64",)


def test_an_unreadable_cpuinfo_claims_nothing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    assert processor.instruction_sets() == ()


def test_the_flags_lie_within_what_is_read_on_a_machine_of_many_cores(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    every = " ".join(f"some_other_flag_{number}" for number in range(200))
    files["/proc/cpuinfo"] = cpuinfo(f"{every} avx2 avx512_vnni") * 256
    assert processor.instruction_sets() == ("avx2", "avx512_vnni")


def test_this_machines_instruction_sets_are_those_of_its_cpuinfo() -> None:
    isa = processor.instruction_sets()
    assert set(isa) <= set(INSTRUCTION_SETS)
    flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    assert ("avx2" in isa) == ("avx2" in flags)
    assert ("avx512_vnni" in isa) == ("avx512_vnni" in flags)


def test_this_machine_is_called_as_platform_calls_it() -> None:
    assert processor.machine() == platform.machine()


def test_the_description_is_read_once_and_again_until_it_could_be_read(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files must not leave the process without instruction sets for good."""
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    assert processor.instruction_sets() == ()
    files["/proc/cpuinfo"] = cpuinfo("avx2")
    assert processor.instruction_sets() == ("avx2",)
    files["/proc/cpuinfo"] = cpuinfo("avx2 avx512_vnni")
    assert processor.instruction_sets() == ("avx2",)


# --- A new row of the table ------------------------------------------------------------------------------------------


AMX = InstructionSet(
    machines=("x86_64",),
    cpu_flag="amx_int8",
    rank=9,
    weight_bits=8,
    reason="8-bit weights: tdpbusd adds u8 x s8 products in int32",
)


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 amx_int8", ("avx2", "amx")), ("avx2 amx_int8x", ("avx2",)), ("", ())]
)
def test_an_instruction_set_that_is_added_to_the_table_is_detected(
    files: Files, monkeypatch: pytest.MonkeyPatch, flags: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    monkeypatch.setitem(INSTRUCTION_SETS, "amx", AMX)
    files["/proc/cpuinfo"] = cpuinfo(flags)
    assert processor.instruction_sets() == expected


def test_an_artifact_of_an_added_instruction_set_is_taken(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    files["/proc/cpuinfo"] = cpuinfo("avx2 amx_int8")
    value = document()
    value["artifacts"].append(artifact("onnx-int8-amx", "onnx", "int8", "onnxruntime", "amx", "onnx/amx.onnx"))
    manifest = Manifest.parse(json.dumps(value).encode())
    options = Options(strategy="quantized", device="cpu")
    before = select(manifest, ResourceProfile.detect(), options)
    assert before.artifact.id == "onnx-int8-avx2"
    rejected = {each.id: reason for each, reason in before.rejected}
    assert rejected["onnx-int8-amx"].startswith("isa 'amx' is unknown to firstvec ")
    monkeypatch.setitem(INSTRUCTION_SETS, "amx", AMX)
    processor._found.clear()
    choice = select(manifest, ResourceProfile.detect(), options)
    assert choice.reason == "INT8 for this CPU (amx)"
    assert [each.id for each in choice.candidates] == ["onnx-int8-amx", "onnx-int8-avx2"]


def test_an_artifact_of_an_added_instruction_set_is_not_taken_on_a_processor_without_it(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    monkeypatch.setitem(INSTRUCTION_SETS, "amx", AMX)
    files["/proc/cpuinfo"] = cpuinfo("avx2")
    value = document()
    value["artifacts"][2]["isa"] = "amx"
    manifest = Manifest.parse(json.dumps(value).encode())
    reason = cannot_run(manifest.artifacts[2], ResourceProfile.detect())
    assert reason == "isa: needs amx, this CPU has avx2"


# --- macOS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", ("hw.optional.avx2_0",), ("avx2",)),
        ("x86_64", ("hw.optional.avx2_0", "hw.optional.avx512vnni"), ("avx2", "avx512_vnni")),
        ("x86_64", (), ()),
        ("arm64", ("hw.optional.avx2_0",), ("arm64",)),
    ],
)
def test_on_macos_the_instruction_sets_are_asked_of_sysctl(
    monkeypatch: pytest.MonkeyPatch, machine: str, features: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(processor, "machine", lambda: machine)
    monkeypatch.setattr(darwin, "has_feature", lambda key: key in features)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processor.instruction_sets() == expected


def test_on_macos_a_row_without_a_key_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    monkeypatch.setattr(darwin, "has_feature", lambda _key: True)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(INSTRUCTION_SETS, "amx", AMX)
    assert processor.instruction_sets() == ("avx2", "avx512_vnni")


def test_on_macos_the_identity_is_that_of_the_processors_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
    found = set()
    for name in ("Apple M1", "Apple M2", "Apple M1"):
        monkeypatch.setattr(darwin, "processor_name", lambda name=name: name)
        found.add(processor.identity())
    assert len(found) == 2


# --- Identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (("cpu MHz\t\t: 2596.1", "cpu MHz\t\t: 3100.0"), False),
        (("processor\t: 0", "processor\t: 7"), False),
        (("avx2", "avx2 avx512_vnni"), True),
        (("stepping\t: 1", "stepping\t: 2"), True),
        (("model name\t: EPYC", "model name\t: Xeon"), True),
    ],
)
def test_processors_are_told_apart_by_model_stepping_and_features(
    change: tuple[str, str], other: bool, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "processor\t: 0\nvendor_id\t: AMD\nmodel name\t: EPYC\nstepping\t: 1\ncpu MHz\t\t: 2596.1\n"
        "flags\t\t: sse avx2\n\nprocessor\t: 1\n"
    )
    files["/proc/cpuinfo"] = text
    first = processor.identity()
    assert len(first) == 8
    assert change[0] in text
    files["/proc/cpuinfo"] = text.replace(*change)
    monkeypatch.setattr(processor, "_seen", [])
    assert (processor.identity() != first) is other


def test_processors_of_two_families_are_told_apart(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files["/proc/cpuinfo"] = "processor\t: 0\n"
    found = set()
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr(processor, "machine", lambda machine=machine: machine)
        found.add(processor.identity())
    assert len(found) == 2


def test_this_machines_identity_is_eight_hexadecimal_digits() -> None:
    first = processor.identity()
    assert int(first, 16) >= 0
    assert (len(first), processor.identity()) == (8, first)
