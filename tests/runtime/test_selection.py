"""Which artifact is taken on which machine, and why not the others."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstvec import OptimizedEmbeddingLoader, __version__
from firstvec.bundle.manifest import Artifact, File, Manifest, Model, Quality
from firstvec.engines.table import ENGINES, INSTRUCTION_SETS, known_devices, version_fits
from firstvec.errors import NoCompatibleArtifact
from firstvec.machine.profile import ResourceProfile
from firstvec.options import Options
from firstvec.selection import (
    Choice,
    candidates,
    cannot_run,
    device_of,
    memory_needed_mb,
    memory_shortage,
    select,
    unknown_part,
    usable_devices,
)
from firstvec.strategy import STRATEGIES
from tests.conftest import Fresh, edit_manifest
from tests.manifests import SHA, UNKNOWN_PARTS, add_what_a_newer_firstvec_may_write, document

BEST = ["lazy", "background", "progressive"]
ISAS = [*INSTRUCTION_SETS]
DEVICES = known_devices()


def file(path: str) -> File:
    """Return the entry of a file."""
    return File(path=path, size=1, sha256=SHA)


def artifact(id_: str, *, cosine_min: float = 1.0, **values: Any) -> Artifact:
    """Return an fp32 ONNX artifact for the CPU, with the values that are given."""
    quality = Quality(
        cosine_mean=1.0,
        cosine_min=cosine_min,
        cosine_p1=cosine_min,
        max_abs_diff=0.0,
        neighbour_overlap=1.0,
        batch_cosine_min=1.0,
        sentences=320,
        measured_with="onnxruntime 1.32.0",
        thresholds={},
    )
    usual: dict[str, Any] = {
        "format": "onnx",
        "precision": "fp32",
        "engine": "onnxruntime",
        "engine_min": "1.23",
        "engine_below": "2",
        "devices": ("cpu",),
        "isa": None,
        "isa_reason": None,
        "batch_invariant": True,
    }
    return Artifact(id=id_, files=(file(id_),), quality=quality, **{**usual, **values})


TORCHSCRIPT = artifact(
    "torchscript",
    format="torchscript",
    engine="torch",
    engine_min="2.10",
    engine_below="3",
    devices=("cpu", "cuda", "mps"),
)
ONNX = artifact("onnx")
AVX2 = artifact("int8-avx2", precision="int8", isa="avx2", cosine_min=0.97)
VNNI = artifact("int8-vnni", precision="int8", isa="avx512_vnni", cosine_min=0.93)
ARM = artifact("int8-arm64", precision="int8", isa="arm64")
ALL = (TORCHSCRIPT, ONNX, AVX2, VNNI, ARM)


def bundle(*artifacts: Artifact) -> Manifest:
    """Return a manifest of those artifacts, or of one of each kind."""
    model = Model(
        name="org/model",
        revision=None,
        source="folder",
        source_sha256=SHA,
        architecture="BertModel",
        embedding_dim=384,
        max_seq_length=256,
        pooling_mode="mean",
        normalized=True,
        pad_token_id=0,
        prompts={},
        default_prompt_name=None,
    )
    return Manifest(
        path="/b/firstvec.json",
        model=model,
        tokenizer=file("tokenizer.json"),
        artifacts=artifacts or ALL,
        support_files=(),
        built_with={},
        inputs_sha256=SHA,
    )


def machine(onnxruntime: str | None = "1.32.0", torch: str | None = "2.13.0+cpu", **values: Any) -> ResourceProfile:
    """Return a two-core AVX2 machine with both engines, with the values that are given."""
    usual: dict[str, Any] = {
        "machine": "x86_64",
        "cpu_count": 2,
        "isa": ("avx2",),
        "has_cuda": False,
        "has_mps": False,
        "available_memory_mb": 4096.0,
        "is_ssd": True,
        "recommended_batch_size": 32,
        "recommended_device": "cpu",
        "engines": (("onnxruntime", onnxruntime), ("tokenizers", "0.23.2"), ("torch", torch)),
        "loaded_engines": (),
        "native_isa": None,
    }
    return ResourceProfile(**{**usual, **values})


CUDA = machine(torch="2.13.0+cu130", has_cuda=True, recommended_device="cuda")


def choose(manifest: Manifest, profile: ResourceProfile, strategy: str = "lazy", **options: Any) -> Choice:
    """Select with these options."""
    return select(manifest, profile, Options(strategy=strategy, **options))


def order(choice: Choice) -> list[str]:
    """Return the ids of the candidates, best first."""
    return [candidate.id for candidate in choice.candidates]


def reasons(choice: Choice) -> dict[str, str]:
    """Return the id of each rejected artifact and the reason against it."""
    return {rejected.id: reason for rejected, reason in choice.rejected}


# --- Which one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", BEST)
def test_the_best_without_quantization_is_full_precision_onnx_on_a_cpu(strategy: str) -> None:
    choice = choose(bundle(), machine(), strategy)
    assert order(choice) == ["onnx", "torchscript"]
    assert choice.artifact == ONNX
    assert choice.device == "cpu"
    assert "full precision" in choice.reason


@pytest.mark.parametrize("strategy", BEST)
def test_int8_is_taken_by_the_best_only_with_enable_quantization(strategy: str) -> None:
    assert reasons(choose(bundle(), machine(), strategy))["int8-avx2"] == (
        "precision: int8, taken only with enable_quantization=True or strategy QUANTIZED"
    )
    choice = choose(bundle(), machine(), strategy, enable_quantization=True)
    assert order(choice) == ["int8-avx2", "onnx", "torchscript"]
    assert choice.reason == "INT8 for this CPU (avx2)"


@pytest.mark.parametrize("enable_quantization", [False, True])
def test_quantized_takes_int8_and_nothing_else(enable_quantization: bool) -> None:
    choice = choose(bundle(), machine(), "quantized", enable_quantization=enable_quantization)
    assert order(choice) == ["int8-avx2"]
    assert reasons(choice)["onnx"] == "precision: fp32, the strategy takes int8"


@pytest.mark.parametrize(
    ("isa", "machine_name", "expected"),
    [
        (("avx2",), "x86_64", ["int8-avx2"]),
        (("avx2", "avx512_vnni"), "x86_64", ["int8-vnni", "int8-avx2"]),
        (("avx512_vnni", "avx2"), "x86_64", ["int8-vnni", "int8-avx2"]),
        (("arm64",), "aarch64", ["int8-arm64"]),
    ],
)
@pytest.mark.parametrize("artifacts", [ALL, ALL[::-1]], ids=["in order", "reversed"])
def test_int8_is_the_one_of_the_cpu_and_vnni_comes_before_avx2(
    isa: tuple[str, ...], machine_name: str, expected: list[str], artifacts: tuple[Artifact, ...]
) -> None:
    profile = machine(isa=isa, machine=machine_name)
    assert order(choose(bundle(*artifacts), profile, "quantized")) == expected


def test_int8_that_runs_anywhere_comes_after_that_of_the_cpu() -> None:
    anywhere = artifact("int8", precision="int8")
    choice = choose(bundle(anywhere, AVX2), machine(), "quantized")
    assert order(choice) == ["int8-avx2", "int8"]
    assert order(choose(bundle(anywhere, AVX2), machine(isa=()), "quantized")) == ["int8"]


def test_the_isa_reason_names_what_is_needed_and_what_is_there() -> None:
    assert reasons(choose(bundle(), machine(), "quantized"))["int8-vnni"] == "isa: needs avx512_vnni, this CPU has avx2"


@pytest.mark.parametrize(
    ("isa", "text"),
    [
        (("avx2", "avx512_vnni"), "isa: needs arm64, this CPU has avx2+avx512_vnni"),
        ((), "isa: needs arm64, this CPU has x86_64"),
    ],
)
def test_the_isa_reason_lists_everything_that_the_cpu_has(isa: tuple[str, ...], text: str) -> None:
    assert cannot_run(ARM, machine(isa=isa)) == text


def test_an_engine_that_is_not_installed_is_named() -> None:
    assert reasons(choose(bundle(), machine(torch=None)))["torchscript"] == "torch: not installed"
    assert cannot_run(ONNX, machine(onnxruntime=None)) == "onnxruntime: not installed"


@pytest.mark.parametrize("version", ["1.22.9", "2.0.0", "1.9"])
def test_an_engine_version_out_of_range_is_named_with_the_range(version: str) -> None:
    choice = choose(bundle(), machine(onnxruntime=version))
    assert order(choice) == ["torchscript"]
    assert reasons(choice)["onnx"] == f"onnxruntime: needs >=1.23,<2, {version} is installed"
    assert choice.reason == "the only full-precision form that runs here"


def test_an_artifact_below_the_wanted_quality_is_rejected_with_both_figures() -> None:
    profile = machine(isa=("avx2", "avx512_vnni"))
    choice = choose(bundle(), profile, "quantized", min_quality=0.95)
    assert reasons(choice)["int8-vnni"] == "quality: cosine_min 0.93 < min_quality 0.95"
    assert order(choice) == ["int8-avx2"]


@pytest.mark.parametrize(("min_quality", "taken"), [(None, True), (0.0, True), (0.97, True), (0.970001, False)])
def test_the_wanted_quality_may_be_met_exactly(min_quality: float | None, taken: bool) -> None:
    choice = choose(bundle(), machine(), enable_quantization=True, min_quality=min_quality)
    assert ("int8-avx2" in order(choice)) is taken


def test_the_wanted_quality_holds_for_full_precision_too() -> None:
    choice = choose(bundle(TORCHSCRIPT, artifact("onnx", cosine_min=0.5)), machine(), min_quality=0.9)
    assert order(choice) == ["torchscript"]


@pytest.mark.parametrize(
    ("profile", "device", "expected", "runs_on"),
    [
        (machine(), None, ["onnx", "torchscript"], "cpu"),
        (machine(loaded_engines=("torch",)), None, ["torchscript", "onnx"], "cpu"),
        (machine(loaded_engines=("torch",)), "cpu", ["torchscript", "onnx"], "cpu"),
        (CUDA, None, ["torchscript", "onnx"], "cuda"),
        (CUDA, "cpu", ["onnx", "torchscript"], "cpu"),
        (CUDA, "cuda", ["torchscript"], "cuda"),
        (machine(torch=None), None, ["onnx"], "cpu"),
        (machine(has_mps=True, recommended_device="mps", isa=("arm64",)), None, ["torchscript", "onnx"], "mps"),
    ],
)
def test_cached_takes_torchscript_on_an_accelerator_or_where_torch_is_loaded_else_onnx(
    profile: ResourceProfile, device: str | None, expected: list[str], runs_on: str
) -> None:
    choice = choose(bundle(), profile, "cached", device=device, enable_quantization=True)
    assert order(choice) == expected
    assert choice.device == runs_on


def test_cached_rejects_int8_as_not_of_full_precision() -> None:
    assert reasons(choose(bundle(), machine(), "cached"))["int8-avx2"] == (
        "precision: int8, the strategy takes full precision"
    )


def test_a_loaded_torch_changes_the_choice_of_cached_alone() -> None:
    for strategy in BEST:
        assert choose(bundle(), machine(loaded_engines=("torch",)), strategy).artifact == ONNX
    assert choose(bundle(), machine(loaded_engines=("torch",)), "cached").reason == "torch is loaded already"


@pytest.mark.parametrize("strategy", BEST)
@pytest.mark.parametrize("enable_quantization", [False, True])
def test_a_recommended_accelerator_takes_torchscript_and_falls_back_to_the_cpus(
    strategy: str, enable_quantization: bool
) -> None:
    choice = choose(bundle(), CUDA, strategy, enable_quantization=enable_quantization)
    assert order(choice) == ["torchscript", *(["int8-avx2"] if enable_quantization else []), "onnx"]
    assert choice.device == "cuda"
    assert choice.reason == "runs on cuda"


def test_an_artifact_that_does_not_run_on_the_recommended_accelerator_runs_on_the_cpu() -> None:
    choice = choose(bundle(ONNX, AVX2), CUDA, "quantized")
    assert (choice.artifact, choice.device) == (AVX2, "cpu")


def test_an_artifact_for_another_accelerator_only_is_rejected() -> None:
    only_mps = TORCHSCRIPT.replace(id="mps", devices=("mps",))
    for profile in (machine(), CUDA):
        choice = choose(bundle(only_mps, ONNX), profile)
        assert order(choice) == ["onnx"]
        assert reasons(choice)["mps"] == f"device: runs on mps, not on {profile.recommended_device}"


def test_a_required_device_rejects_what_does_not_run_there() -> None:
    choice = choose(bundle(), CUDA, device="cuda")
    assert order(choice) == ["torchscript"]
    assert reasons(choice)["onnx"] == "device: runs on cpu, not on cuda"


def test_a_device_number_is_kept() -> None:
    choice = choose(bundle(), CUDA, device="cuda:1")
    assert (choice.artifact, choice.device) == (TORCHSCRIPT, "cuda:1")


def test_the_rejected_are_in_the_manifests_order() -> None:
    assert [rejected.id for rejected, _ in choose(bundle(), machine()).rejected] == [
        "int8-avx2",
        "int8-vnni",
        "int8-arm64",
    ]


def test_equally_good_candidates_keep_the_manifests_order() -> None:
    first, second = artifact("first"), artifact("second")
    assert order(choose(bundle(first, second), machine())) == ["first", "second"]
    assert order(choose(bundle(second, first), machine())) == ["second", "first"]


def test_a_choice_as_json_values_has_the_fallbacks_and_the_reasons() -> None:
    values = choose(bundle(TORCHSCRIPT, ONNX, AVX2), machine()).to_values()
    assert values == {
        "artifact": "onnx",
        "device": "cpu",
        "reason": "full precision, starts fastest on a CPU",
        "fallbacks": ["torchscript"],
        "rejected": {"int8-avx2": "precision: int8, taken only with enable_quantization=True or strategy QUANTIZED"},
    }


def test_without_options_the_default_ones_count() -> None:
    assert select(bundle(), machine()) == choose(bundle(), machine(), "lazy")


# --- Devices that the engine cannot use ------------------------------------------------------------------------------

ONNX_FOR_CUDA = artifact("onnx-for-cuda", devices=("cpu", "cuda"))


def test_an_artifact_does_not_run_on_a_device_that_its_engine_cannot_use() -> None:
    """A newer firstvec may list devices that the engine of this one cannot use."""
    assert usable_devices(ONNX_FOR_CUDA) == ("cpu",)
    choice = choose(bundle(ONNX_FOR_CUDA), CUDA)
    assert (choice.artifact, choice.device) == (ONNX_FOR_CUDA, "cpu")
    assert choice.reason == "full precision, starts fastest on a CPU"
    choice = choose(bundle(ONNX_FOR_CUDA, TORCHSCRIPT), CUDA)
    assert (order(choice), choice.device) == (["torchscript", "onnx-for-cuda"], "cuda")
    assert device_of(ONNX_FOR_CUDA, CUDA, Options()) == "cpu"
    assert cannot_run(ONNX_FOR_CUDA, CUDA, "cuda") == "device: runs on cpu, not on cuda"


def test_an_artifact_whose_engine_can_use_none_of_its_devices_is_rejected() -> None:
    only_cuda = artifact("onnx-cuda", devices=("cuda", "mps"))
    assert cannot_run(only_cuda, CUDA) == "device: onnxruntime does not run on cuda/mps"
    assert order(choose(bundle(only_cuda, ONNX), CUDA)) == ["onnx"]


# --- The native engine -----------------------------------------------------------------------------------------------

NATIVE = artifact("native", format="native", engine="native", engine_min="1", engine_below="2")
NATIVE_INT8 = NATIVE.replace(id="native-int8", precision="int8")
WITH_NATIVE = (*ALL, NATIVE, NATIVE_INT8)
KERNELS = ENGINES["native"].kernels
SLOW = f"isa: native is fast with {', '.join(KERNELS)} only, and none of them is used here"


def native_machine(native_isa: str | None = "avx2", native: str | None = "1.0", **values: Any) -> ResourceProfile:
    """Return a machine with the native engine, too."""
    profile = machine(native_isa=native_isa, **values)
    return profile.replace(engines=(("native", native), *profile.engines))


@pytest.mark.parametrize("isa", KERNELS)
@pytest.mark.parametrize("artifacts", [WITH_NATIVE, WITH_NATIVE[::-1]], ids=["in order", "reversed"])
def test_the_native_engine_comes_first_on_a_cpu_with_its_kernels(isa: str, artifacts: tuple[Artifact, ...]) -> None:
    here = native_machine(isa)
    for strategy in (*BEST, "cached"):
        choice = choose(bundle(*artifacts), here, strategy)
        assert order(choice) == ["native", "onnx", "torchscript"]
        assert (choice.device, choice.reason) == ("cpu", "full precision, starts fastest on a CPU")
    quantized = choose(bundle(*artifacts), here, "quantized")
    assert order(quantized) == ["native-int8", "int8-avx2"]
    assert quantized.reason == f"INT8 for this CPU ({isa})"
    assert order(choose(bundle(*artifacts), here, enable_quantization=True)) == [
        *("native-int8", "int8-avx2", "native", "onnx", "torchscript")
    ]


def test_the_engines_rank_counts_before_that_of_the_instruction_set() -> None:
    here = native_machine("avx2", isa=("avx2", "avx512_vnni"))
    choice = choose(bundle(*WITH_NATIVE), here, "quantized")
    assert order(choice) == ["native-int8", "int8-vnni", "int8-avx2"]


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (native_machine("plain"), SLOW),
        (native_machine(None), SLOW),
        (native_machine(None, None), "native: not installed"),
        (native_machine("avx2", "2.0"), "native: needs >=1,<2, 2.0 is installed"),
    ],
    ids=["plain", "none", "not installed", "version"],
)
def test_the_native_engine_is_passed_over_where_it_is_not_fast_or_not_there(
    profile: ResourceProfile, reason: str
) -> None:
    assert cannot_run(NATIVE, profile) == cannot_run(NATIVE_INT8, profile) == reason
    for strategy in (*BEST, "cached"):
        choice = choose(bundle(*WITH_NATIVE), profile, strategy)
        assert order(choice) == ["onnx", "torchscript"]
        assert reasons(choice)["native"] == reason
        assert choice.reason == "full precision, starts fastest on a CPU"
    choice = choose(bundle(*WITH_NATIVE), profile, "quantized")
    assert order(choice) == ["int8-avx2"]
    assert reasons(choice)["native-int8"] == reason
    with pytest.raises(NoCompatibleArtifact, match=f"native: {reason}"):
        choose(bundle(*WITH_NATIVE), profile, artifact="native")


def test_a_loaded_torch_comes_before_the_native_engine_with_cached_alone() -> None:
    loaded = native_machine(loaded_engines=("torch", "native"))
    assert order(choose(bundle(*WITH_NATIVE), loaded, "cached")) == ["torchscript", "native", "onnx"]
    for strategy in BEST:
        assert order(choose(bundle(*WITH_NATIVE), loaded, strategy)) == ["native", "onnx", "torchscript"]


def test_an_accelerator_comes_before_the_native_engine() -> None:
    gpu = native_machine(torch="2.13.0+cu130", has_cuda=True, recommended_device="cuda")
    choice = choose(bundle(*WITH_NATIVE), gpu)
    assert (order(choice), choice.device) == (["torchscript", "native", "onnx"], "cuda")
    assert device_of(NATIVE, gpu, Options()) == "cpu"
    assert cannot_run(NATIVE, gpu, "cuda") == "device: runs on cpu, not on cuda"
    assert order(choose(bundle(*WITH_NATIVE), gpu, device="cpu")) == ["native", "onnx", "torchscript"]


def test_the_native_engine_is_taken_however_little_memory_is_left() -> None:
    """It maps its file, and raises MemoryError where memory is short."""
    full = native_machine(available_memory_mb=1.0)
    choice = choose(bundle(*WITH_NATIVE), full, "background")
    assert order(choice) == ["native"]
    assert reasons(choice)["onnx"].startswith("memory: needs about ")
    assert choice.reason == "the only full-precision form that runs here"


def test_an_artifact_is_judged_when_it_is_asked_for() -> None:
    """The first candidate decides a load. What only the others need of the machine is not looked up for it."""
    for strategy, first in (("lazy", NATIVE), ("quantized", NATIVE_INT8)):
        values = native_machine().to_dict()
        profile = ResourceProfile(
            **{name: values[name] for name in values if name not in ("isa", "available_memory_mb")}
        )
        found = candidates(bundle(*WITH_NATIVE), profile, Options(strategy=strategy))
        assert next(found) == first
        assert not {"isa", "available_memory_mb"} & vars(profile).keys()
        next(found, None)
        assert "available_memory_mb" in vars(profile)


WHAT_LOADS = """
import sys
from firstvec import FirstvecError, OptimizedEmbeddingLoader
for strategy in ("lazy", "quantized"):
    loader = OptimizedEmbeddingLoader(sys.argv[1], strategy, "cpu", output="list")
    try:
        loader.start_loading()
        print(loader.get_provider().artifact.id, loader.get_provider().engine, sep=": ")
    except FirstvecError as error:
        print(type(error).__name__, error, sep=": ")
"""


@pytest.mark.native
def test_a_variable_chooses_the_instruction_set_of_the_native_engine(tiny_built: Path, fresh: Fresh) -> None:
    def loaded(**environment: str) -> list[str]:
        return fresh(WHAT_LOADS, tiny_built, **environment).stdout.splitlines()

    from firstvec import _native

    fastest, *others, plain = _native.instruction_sets()
    if fastest == plain:
        pytest.skip("this processor has none of the engine's kernels")
    assert loaded() == loaded(FIRSTVEC_NATIVE_ISA="") == loaded(FIRSTVEC_NATIVE_ISA=fastest)
    for isa in (fastest, *others):
        found = loaded(FIRSTVEC_NATIVE_ISA=isa)
        assert found == [f"native-{precision}: native {_native.VERSION} ({isa})" for precision in ("fp32", "int8")]
    lazy, quantized = loaded(FIRSTVEC_NATIVE_ISA="plain")
    assert lazy.startswith("onnx-fp32: onnxruntime ")
    assert quantized.startswith("onnx-int8-")
    for line in loaded(FIRSTVEC_NATIVE_ISA="sse2"):
        assert line.startswith("InputError: FIRSTVEC_NATIVE_ISA is 'sse2': this processor can use ")


# --- One artifact by its id ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [*STRATEGIES])
@pytest.mark.parametrize("id_", ["torchscript", "onnx", "int8-avx2"])
def test_the_artifact_that_is_asked_for_is_taken_whatever_the_strategy_takes(strategy: str, id_: str) -> None:
    choice = choose(bundle(), machine(), strategy, artifact=id_)
    assert order(choice) == [id_]
    assert reasons(choice)["int8-vnni"] == "isa: needs avx512_vnni, this CPU has avx2"
    others = {other: reasons(choice)[other] for other in ("torchscript", "onnx", "int8-avx2") if other != id_}
    assert set(others.values()) == {f"artifact: only {id_} is asked for"}


@pytest.mark.parametrize(
    ("id_", "hint"),
    [
        (
            "another",
            "The bundle has no artifact 'another': it has torchscript, onnx, int8-avx2, int8-vnni, int8-arm64.",
        ),
        ("int8-vnni", "Leave the artifact out: the strategy then chooses one."),
    ],
)
def test_an_artifact_that_is_unknown_or_does_not_run_here_is_not_replaced(id_: str, hint: str) -> None:
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(bundle(), machine(), artifact=id_)
    found = dict(caught.value.rejected)
    assert found["onnx"] == f"artifact: only {id_} is asked for"
    assert found["int8-vnni"] == "isa: needs avx512_vnni, this CPU has avx2"
    assert str(caught.value).splitlines()[-1] == hint


def test_the_wanted_quality_and_the_memory_count_for_the_artifact_that_is_asked_for() -> None:
    for profile, options in ((machine(), {"min_quality": 0.98}), (machine(available_memory_mb=10.0), {})):
        with pytest.raises(NoCompatibleArtifact):
            choose(bundle(), profile, "quantized", artifact="int8-avx2", **options)


# --- Bundles with INT8 only ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", BEST)
def test_int8_is_taken_where_the_bundle_has_no_full_precision(strategy: str) -> None:
    choice = choose(bundle(AVX2, ARM), machine(), strategy)
    assert order(choice) == ["int8-avx2"]
    assert choice.reason == "INT8 for this CPU (avx2); the bundle has no full precision"


# --- Bundles of which some artifacts are installed -------------------------------------------------------------------

ABSENT = "not installed: its files are in another wheel of the bundle"


@pytest.mark.parametrize("strategy", BEST)
def test_what_is_not_installed_is_passed_over_with_the_reason(strategy: str) -> None:
    choice = choose(bundle(AVX2, ARM).replace(absent=(ONNX, TORCHSCRIPT)), machine(), strategy)
    assert order(choice) == ["int8-avx2"]
    assert choice.reason == "INT8 for this CPU (avx2); no full precision is installed"
    assert list(reasons(choice)) == ["int8-arm64", "onnx", "torchscript"]
    assert reasons(choice)["onnx"] == reasons(choice)["torchscript"] == ABSENT


@pytest.mark.parametrize(
    ("strategy", "options", "hint"),
    [
        ("cached", {}, "Install the wheel with one of the artifacts that are not installed."),
        ("lazy", {"artifact": "onnx"}, "Install the wheel with this artifact, or leave the artifact out"),
        ("lazy", {"artifact": "int8-arm64"}, "Leave the artifact out: the strategy then chooses one."),
        ("lazy", {"artifact": "none"}, "The bundle has no artifact 'none': it has int8-arm64, onnx."),
    ],
)
def test_error_says_what_to_install(strategy: str, options: dict[str, str], hint: str) -> None:
    manifest = bundle(ARM).replace(absent=(ONNX,))
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(manifest, machine(), strategy, **options)
    assert dict(caught.value.rejected)["onnx"] == ABSENT
    assert str(caught.value).splitlines()[-1].startswith(hint)


def test_without_any_installed_artifact_the_error_says_so() -> None:
    with pytest.raises(NoCompatibleArtifact, match="Install the wheel with one of the artifacts"):
        choose(bundle(ONNX).replace(artifacts=(), absent=(ONNX,)), machine())


def test_cached_never_takes_int8_and_names_the_strategy_that_does() -> None:
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(bundle(AVX2, ARM), machine(), "cached")
    assert dict(caught.value.rejected)["int8-avx2"] == "precision: int8, the strategy takes full precision"
    assert str(caught.value).splitlines()[-1] == "This bundle has INT8 only: use strategy='quantized'."


@pytest.mark.parametrize("strategy", BEST)
@pytest.mark.parametrize(
    "full",
    [
        ONNX.replace(engine_min="1.99"),
        TORCHSCRIPT.replace(engine_min="2.99"),
        artifact("onnx", cosine_min=0.5),
    ],
    ids=["onnxruntime is too old", "torch is too old", "quality"],
)
def test_int8_is_not_taken_silently_where_full_precision_is_there_and_cannot_be_used(
    strategy: str, full: Artifact
) -> None:
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(bundle(full, AVX2), machine(), strategy, min_quality=0.9)
    assert dict(caught.value.rejected)["int8-avx2"] == (
        "precision: int8, taken only with enable_quantization=True or strategy QUANTIZED"
    )
    choice = choose(bundle(full, AVX2), machine(), strategy, min_quality=0.9, enable_quantization=True)
    assert (choice.artifact, choice.reason) == (AVX2, "INT8 for this CPU (avx2)")


def test_int8_is_not_taken_silently_where_full_precision_does_not_fit_into_memory() -> None:
    full = ONNX.replace(files=(File(path="onnx", size=1 << 40, sha256=SHA),))
    with pytest.raises(NoCompatibleArtifact, match="precision: int8, taken only with enable_quantization=True"):
        choose(bundle(full, AVX2), machine(), "background")


@pytest.mark.parametrize("part", [*UNKNOWN_PARTS])
def test_full_precision_of_a_newer_firstvec_does_not_count_as_full_precision(part: str) -> None:
    unknown = ONNX.replace(id="unknown", **{"devices": ("npu",)} if part == "device" else {part: UNKNOWN_PARTS[part]})
    choice = choose(bundle(unknown, AVX2), machine())
    assert (choice.artifact, choice.reason) == (AVX2, "INT8 for this CPU (avx2); the bundle has no full precision")
    with pytest.raises(NoCompatibleArtifact, match="use strategy='quantized'"):
        choose(bundle(unknown, AVX2), machine(), "cached")


# --- Artifacts of a newer firstvec -----------------------------------------------------------------------------------


def newer_manifest() -> Manifest:
    """Return a manifest of format 1.7 with one artifact for each unknown part, beside three known artifacts."""
    value = document()
    add_what_a_newer_firstvec_may_write(value)
    value["artifacts"][-3] |= {"engine_min": "2.10", "engine_below": "3"}
    return Manifest.parse(json.dumps(value).encode())


UNKNOWN_REASONS = {
    f"unknown-{part}": f"{part} {value!r} is unknown to firstvec {__version__}: upgrade"
    for part, value in UNKNOWN_PARTS.items()
}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        *((strategy, ["onnx-fp32", "torchscript-fp32"]) for strategy in (*BEST, "cached")),
        ("quantized", ["onnx-int8-avx2"]),
    ],
)
def test_artifacts_with_an_unknown_part_are_passed_over_and_known_ones_are_taken(
    strategy: str, expected: list[str]
) -> None:
    choice = choose(newer_manifest(), machine(), strategy)
    assert order(choice) == expected
    assert {id_: reason for id_, reason in reasons(choice).items() if id_ in UNKNOWN_REASONS} == UNKNOWN_REASONS
    assert [unknown_part(each) for each in choice.candidates] == [None] * len(expected)


def test_the_reason_against_an_unknown_instruction_set_asks_for_an_upgrade() -> None:
    assert UNKNOWN_REASONS["unknown-isa"] == f"isa 'amx' is unknown to firstvec {__version__}: upgrade"
    assert unknown_part(AVX2.replace(isa="amx")) == UNKNOWN_REASONS["unknown-isa"]


@pytest.mark.parametrize("options", [{}, {"strategy": "quantized"}, {"strategy": "cached"}, {"device": "cuda"}])
def test_where_every_artifact_has_an_unknown_part_the_error_asks_for_an_upgrade(options: dict[str, Any]) -> None:
    manifest = newer_manifest()
    manifest = manifest.replace(artifacts=manifest.artifacts[: len(UNKNOWN_PARTS)])
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(manifest, machine(), **options)
    assert dict(caught.value.rejected) == UNKNOWN_REASONS
    assert str(caught.value).splitlines()[-1] == "Upgrade firstvec (`pip install --upgrade firstvec`)."


@pytest.mark.parametrize("part", ["format", "engine", "precision", "isa"])
@pytest.mark.parametrize("value", ["x" * 10_000, "\u200b\ud7fc" * 5_000])
def test_a_reason_quotes_little_of_an_unknown_value_and_can_be_printed(part: str, value: str) -> None:
    reason = unknown_part(ONNX.replace(**{part: value}))
    assert reason is not None
    assert reason.startswith(f"{part} '{value[0] if value.isprintable() else chr(92)}")
    assert reason.endswith(f"' is unknown to firstvec {__version__}: upgrade")
    assert len(reason) < 600
    assert reason.isprintable()


@pytest.mark.parametrize("devices", [("cuda", "\ud7fc"), ("cuda", *["x" * 10_000] * 3)])
def test_a_reason_quotes_little_of_the_devices_and_can_be_printed(devices: tuple[str, ...]) -> None:
    reason = cannot_run(artifact("onnx", devices=devices), CUDA)
    assert reason is not None
    assert reason.startswith("device: onnxruntime does not run on cuda/")
    assert len(reason) < 600
    assert reason.isprintable()
    reason = cannot_run(artifact("onnx", devices=("cpu",) * 10_000), CUDA, "cuda")
    assert reason is not None
    assert reason.startswith("device: runs on cpu/cpu")
    assert reason.endswith(", not on cuda")
    assert len(reason) < 600


def test_one_known_device_is_enough() -> None:
    assert unknown_part(artifact("onnx", devices=("npu", "cpu"))) is None
    assert order(choose(bundle(artifact("onnx", devices=("npu", "cpu"))), machine())) == ["onnx"]


@pytest.mark.parametrize(
    ("engine", "format_", "reason"),
    [
        ("torch", "onnx", "engine: torch does not run onnx"),
        ("onnxruntime", "torchscript", "engine: onnxruntime does not run torchscript"),
    ],
)
def test_an_engine_that_does_not_run_the_format_is_passed_over(engine: str, format_: str, reason: str) -> None:
    wrong = artifact("wrong", engine=engine, format=format_, engine_min="1", engine_below="9")
    assert unknown_part(wrong) is None
    choice = choose(bundle(wrong, ONNX), machine())
    assert order(choice) == ["onnx"]
    assert reasons(choice) == {"wrong": reason}
    with pytest.raises(NoCompatibleArtifact, match=f"wrong: {reason}"):
        choose(bundle(wrong), machine())


@pytest.mark.native
@pytest.mark.parametrize(("asked", "taken"), [(None, "native-fp32"), ("onnx-fp32", "onnx-fp32")])
def test_a_bundle_of_a_newer_firstvec_gives_the_vectors_of_its_known_artifacts(
    asked: str | None, taken: str, tiny_built: Path, tiny_bundle: Path
) -> None:
    """The files of the unknown artifacts are not even there: nothing opens them."""

    def load(folder: Path) -> list[float]:
        loader = OptimizedEmbeddingLoader(str(folder), device="cpu", output="list", artifact=asked)
        vector = loader.get_provider().embed_query("a text")
        assert loader.report()["artifact"] == taken
        return vector

    edit_manifest(tiny_bundle, add_what_a_newer_firstvec_may_write)
    assert load(tiny_bundle) == load(tiny_built)
    loader = OptimizedEmbeddingLoader(str(tiny_bundle), device="cpu")
    assert {id_: reason for id_, reason in reasons(loader.choose()).items() if id_ in UNKNOWN_REASONS} == (
        UNKNOWN_REASONS
    )


def test_a_bundle_with_unknown_artifacts_only_does_not_load(tiny_bundle: Path) -> None:
    def keep_the_unknown(manifest: dict[str, Any]) -> None:
        add_what_a_newer_firstvec_may_write(manifest)
        del manifest["artifacts"][len(UNKNOWN_PARTS) :]

    edit_manifest(tiny_bundle, keep_the_unknown)
    with pytest.raises(NoCompatibleArtifact, match="isa 'amx' is unknown to firstvec") as caught:
        OptimizedEmbeddingLoader(str(tiny_bundle), device="cpu").get_provider()
    assert dict(caught.value.rejected) == UNKNOWN_REASONS


# --- None at all -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "arguments", "expected"),
    [
        (
            machine(),
            {"device": "cuda"},
            {
                "torchscript": "device: no usable cuda here",
                "onnx": "device: runs on cpu, not on cuda",
                "int8-avx2": "device: runs on cpu, not on cuda",
                "int8-vnni": "device: runs on cpu, not on cuda",
                "int8-arm64": "device: runs on cpu, not on cuda",
            },
        ),
        (
            machine(onnxruntime=None, torch=None),
            {},
            {
                "torchscript": "torch: not installed",
                "onnx": "onnxruntime: not installed",
                "int8-avx2": "onnxruntime: not installed",
                "int8-vnni": "isa: needs avx512_vnni, this CPU has avx2",
                "int8-arm64": "isa: needs arm64, this CPU has avx2",
            },
        ),
        (
            machine(isa=(), machine="riscv64"),
            {"strategy": "quantized"},
            {
                "torchscript": "precision: fp32, the strategy takes int8",
                "onnx": "precision: fp32, the strategy takes int8",
                "int8-avx2": "isa: needs avx2, this CPU has riscv64",
                "int8-vnni": "isa: needs avx512_vnni, this CPU has riscv64",
                "int8-arm64": "isa: needs arm64, this CPU has riscv64",
            },
        ),
        (
            machine(onnxruntime="1.22.0", torch="3.0.0"),
            {"strategy": "cached"},
            {
                "torchscript": "torch: needs >=2.10,<3, 3.0.0 is installed",
                "onnx": "onnxruntime: needs >=1.23,<2, 1.22.0 is installed",
                "int8-avx2": "onnxruntime: needs >=1.23,<2, 1.22.0 is installed",
                "int8-vnni": "isa: needs avx512_vnni, this CPU has avx2",
                "int8-arm64": "isa: needs arm64, this CPU has avx2",
            },
        ),
        (
            machine(),
            {"min_quality": 1.1},
            {
                "torchscript": "quality: cosine_min 1 < min_quality 1.1",
                "onnx": "quality: cosine_min 1 < min_quality 1.1",
                "int8-avx2": "precision: int8, taken only",
                "int8-vnni": "isa: needs avx512_vnni, this CPU has avx2",
                "int8-arm64": "isa: needs arm64, this CPU has avx2",
            },
        ),
    ],
    ids=["no cuda", "no engine", "unknown cpu", "versions", "quality"],
)
def test_when_none_is_left_every_reason_is_listed_with_a_hint(
    profile: ResourceProfile, arguments: dict[str, Any], expected: dict[str, str]
) -> None:
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(bundle(), profile, **arguments)
    error = caught.value
    assert [id_ for id_, _ in error.rejected] == list(expected)
    for id_, reason in error.rejected:
        assert reason.startswith(expected[id_])
        assert f"\n  - {id_}: {reason}" in str(error)
    assert "org/model" in str(error)
    assert str(profile) in str(error)
    hint = str(error).splitlines()[-1]
    assert hint.startswith(("Install", "Use", "Leave", "Lower"))
    assert hint.endswith(".")


@pytest.mark.parametrize(
    ("strategy", "hint"),
    [
        ("lazy", "Install a version of an engine that fits, or allow INT8 with enable_quantization=True."),
        ("quantized", "Use a full-precision strategy (LAZY, BACKGROUND, PROGRESSIVE, CACHED), or build INT8 for this"),
        ("cached", "Install a version of an engine that fits, or build the bundle with its fp32 artifacts."),
    ],
)
def test_the_hint_is_that_of_the_strategy(strategy: str, hint: str) -> None:
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(bundle(), machine(isa=(), torch="3.0.0", onnxruntime="1.22.0"), strategy)
    assert str(caught.value).splitlines()[-1].startswith(hint)


@pytest.mark.parametrize(
    ("artifacts", "strategy", "hint"),
    [
        ((ONNX,), "cached", "Install onnxruntime (`pip install 'firstvec[onnx]'`)."),
        ((ONNX, AVX2), "quantized", "Install onnxruntime (`pip install 'firstvec[onnx]'`)."),
        (
            (ONNX, AVX2),
            "lazy",
            "Install onnxruntime (`pip install 'firstvec[onnx]'`), or allow INT8 with enable_quantization=True.",
        ),
        ((TORCHSCRIPT,), "lazy", "Install torch (`pip install 'firstvec[torch]'`)."),
        ((ONNX, TORCHSCRIPT), "cached", "Install onnxruntime (`pip install 'firstvec[onnx]'`)."),
        (
            (NATIVE_INT8,),
            "quantized",
            "Install firstvec from a wheel for this machine, or with a C compiler, because it has no engine.",
        ),
        # onnxruntime would not help, because the strategy does not take the artifact.
        ((AVX2,), "cached", "This bundle has INT8 only: use strategy='quantized'."),
    ],
)
def test_the_hint_names_the_extra_of_an_engine_that_is_not_installed(
    artifacts: tuple[Artifact, ...], strategy: str, hint: str
) -> None:
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(bundle(*artifacts), machine(torch=None, onnxruntime=None), strategy)
    assert str(caught.value).splitlines()[-1] == hint


def test_the_hint_names_onnxruntime_where_the_native_engine_has_plain_c_only() -> None:
    with pytest.raises(NoCompatibleArtifact, match=r"Build ONNX artifacts .* \(`pip install 'firstvec\[onnx\]'`\)\.$"):
        choose(bundle(NATIVE_INT8), native_machine("plain", onnxruntime=None), "quantized")


def test_the_hint_names_the_extra_of_the_artifact_that_is_asked_for() -> None:
    with pytest.raises(NoCompatibleArtifact, match=r"pip install 'firstvec\[onnx\]'"):
        choose(bundle(), machine(torch=None, onnxruntime=None), artifact="onnx")


@pytest.mark.parametrize("device", ["mps", "cuda", "cuda:0", "tpu"])
def test_a_required_device_that_is_not_there_is_never_replaced_by_the_cpu(device: str) -> None:
    with pytest.raises(NoCompatibleArtifact) as caught:
        choose(bundle(), machine(), device=device, enable_quantization=True)
    assert {reason.partition(":")[0] for _, reason in caught.value.rejected} == {"device"}


# --- Always ----------------------------------------------------------------------------------------------------------

ARTIFACTS = st.lists(
    st.builds(
        lambda number, engine, **values: artifact(
            f"a{number}",
            engine=engine,
            format={"torch": "torchscript"}.get(engine, engine.removesuffix("runtime")),
            **values,
        ),
        st.integers(0, 1 << 60),
        engine=st.sampled_from(["native", "onnxruntime", "torch"]),
        precision=st.sampled_from(["fp32", "int8"]),
        isa=st.none() | st.sampled_from(ISAS),
        devices=st.lists(st.sampled_from(DEVICES), min_size=1, unique=True).map(tuple),
        engine_min=st.sampled_from(["1", "1.23", "2.10"]),
        engine_below=st.sampled_from(["1.30", "2", "3"]),
        cosine_min=st.floats(-1, 1),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda item: item.id,
)
MACHINES = st.builds(
    native_machine,
    st.sampled_from([None, "plain", *KERNELS]),
    st.sampled_from([None, "1.0", "2.0"]),
    onnxruntime=st.sampled_from([None, "1.20.0", "1.32.0"]),
    torch=st.sampled_from([None, "1.13.1", "2.13.0+cpu"]),
    isa=st.lists(st.sampled_from(ISAS), unique=True).map(tuple),
    recommended_device=st.sampled_from(DEVICES),
    loaded_engines=st.sampled_from([(), ("torch",), ("onnxruntime", "torch")]),
)


@settings(max_examples=300, deadline=None)
@given(
    artifacts=ARTIFACTS,
    profile=MACHINES,
    strategy=st.sampled_from([*STRATEGIES]),
    device=st.none() | st.sampled_from([*DEVICES, "cuda:1"]),
    enable_quantization=st.booleans(),
    min_quality=st.none() | st.floats(-1, 1),
)
def test_every_artifact_is_either_a_candidate_that_runs_or_rejected_with_a_reason(
    artifacts: list[Artifact],
    profile: ResourceProfile,
    strategy: str,
    device: str | None,
    enable_quantization: bool,
    min_quality: float | None,
) -> None:
    options: dict[str, Any] = {
        "device": device,
        "enable_quantization": enable_quantization,
        "min_quality": min_quality,
    }
    ids = [each.id for each in artifacts]
    is_int8_only = strategy in BEST and all(each.precision == "int8" for each in artifacts)
    try:
        choice = choose(bundle(*artifacts), profile, strategy, **options)
    except NoCompatibleArtifact as error:
        rejected = error.rejected
        taken: tuple[Artifact, ...] = ()
    else:
        rejected = tuple((each.id, reason) for each, reason in choice.rejected)
        taken = choice.candidates
        assert taken == (*candidates(bundle(*artifacts), profile, Options(strategy=strategy, **options)),)
        assert choice.artifact is taken[0]
        assert choice.device.partition(":")[0] in usable_devices(choice.artifact)
        assert device in (None, choice.device)
        assert choice.reason
        assert choice == choose(bundle(*artifacts), profile, strategy, **options)
        assert device_of(choice.artifact, profile, Options(strategy=strategy, **options)) == choice.device
    assert sorted([*(each.id for each in taken), *(id_ for id_, _ in rejected)]) == sorted(ids)
    assert [id_ for id_, _ in rejected] == [id_ for id_ in ids if id_ in dict(rejected)]
    assert all(reason for _, reason in rejected)
    for each in taken:
        version = profile.engine_version(each.engine)
        assert version is not None
        assert version_fits(version, each.engine_min, each.engine_below)
        assert each.isa is None or each.isa in profile.isa
        assert each.engine != "native" or profile.native_isa in KERNELS
        assert min_quality is None or each.quality.cosine_min >= min_quality
        assert each.precision == "fp32" or enable_quantization or strategy == "quantized" or is_int8_only


def test_selecting_reads_nothing_but_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, profile, missing = bundle(), machine(), machine(onnxruntime=None, torch=None)

    def touched(*arguments: object, **_options: object) -> None:
        raise AssertionError(f"select touched the system: {arguments}")

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", touched)
        for name in ("stat", "lstat", "open", "listdir", "scandir", "getenv", "getcwd", "uname", "sched_getaffinity"):
            patched.setattr(os, name, touched, raising=False)
        patched.setattr(os, "environ", None)
        outcomes = [choose(manifest, profile, strategy).artifact.id for strategy in STRATEGIES]
        with pytest.raises(NoCompatibleArtifact):
            choose(manifest, missing)
    assert outcomes == ["onnx", "onnx", "onnx", "int8-avx2", "onnx"]


def test_selecting_changes_none_of_its_arguments() -> None:
    manifest, profile = bundle(), machine()
    choose(manifest, profile, "quantized", device="cpu", enable_quantization=True, min_quality=0.5)
    assert manifest == bundle()
    assert profile == machine()


# --- Versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "minimum", "below", "fits"),
    [
        ("1.32.0", "1.23", "2", True),
        ("1.9", "1.10", "2", False),
        ("1.10", "1.9", "2", True),
        ("1.10", "1.9", "1.10", False),
        ("1.9.9", "1.9", "1.10", True),
        ("1.23", "1.23", "2", True),
        ("1.23", "1.23.0", "2", True),
        ("1.23.0", "1.23", "2", True),
        ("1.22.9", "1.23", "2", False),
        ("2", "1.23", "2", False),
        ("2.0.0", "1.23", "2", False),
        ("1.99.99", "1.23", "2", True),
        ("2.0.1", "1.23", "2.0", False),
        ("2.13.0+cpu", "2.10", "3", True),
        ("2.13.0+cu130", "2.13", "3", True),
        ("2.13.0+cu130", "2.10", "2.13", False),
        ("2.9.1+cpu", "2.10", "3", False),
        ("1.23+cu13.4", "1.23", "1.23.1", True),
        ("2.14.0a0+git1234", "2.10", "3", True),
        ("1.23.0rc1", "1.23", "2", True),
        ("2.0.0rc1", "1.23", "2", False),
        ("1.23rc2", "1.23", "2", True),
        ("1.24.0.dev20260101", "1.23", "2", True),
        ("1.22.0.post1", "1.23", "2", False),
        ("1.23.0.post1", "1.23", "2", True),
        ("10.0", "9", "11", True),
        ("", "1.23", "2", False),
        ("unknown", "1.23", "2", False),
    ],
)
def test_an_engine_is_used_if_the_numbers_of_its_release_are_in_the_range(
    version: str, minimum: str, below: str, fits: bool
) -> None:
    wanted = ONNX.replace(engine_min=minimum, engine_below=below)
    expected = None if fits else f"onnxruntime: needs >={minimum},<{below}, {version} is installed"
    assert cannot_run(wanted, machine(onnxruntime=version)) == expected


# --- Memory ----------------------------------------------------------------------------------------------------------

BIG = artifact("onnx").replace(files=(File(path="onnx", size=90 << 20, sha256=SHA),))
SMALL = artifact("int8-avx2", precision="int8", isa="avx2").replace(files=(File(path="q", size=22 << 20, sha256=SHA),))
BIG_TORCH = TORCHSCRIPT.replace(files=(File(path="pt", size=90 << 20, sha256=SHA),))


@pytest.mark.parametrize(
    ("strategy", "available", "expected"),
    [
        ("background", 127.0, "onnx"),
        ("background", 126.0, None),
        ("lazy", 81.0, "onnx"),  # mapped weights need no memory
        ("lazy", 79.0, None),
        ("quantized", 81.0, "int8-avx2"),
        ("quantized", 79.0, None),
        ("background", 0.0, "onnx"),  # the system does not say
    ],
)
def test_an_artifact_that_does_not_fit_into_memory_is_rejected(
    strategy: str, available: float, expected: str | None
) -> None:
    here = machine(available_memory_mb=available, isa=("avx2",))
    if expected is not None:
        assert choose(bundle(BIG, SMALL), here, strategy).artifact.id == expected
        return
    with pytest.raises(
        NoCompatibleArtifact, match=rf"memory: needs about \d+ MB, {available:.0f} MB can be used"
    ) as caught:
        choose(bundle(BIG, SMALL), here, strategy)
    assert "Give the process more memory" in str(caught.value)


def test_the_memory_needed_is_enough_for_a_larger_model() -> None:
    """Sessions of BERT-base's shape were killed in control groups of 103 and 448 MB: see `memory_needed_mb`."""
    larger = bundle(BIG.replace(files=(File(path="onnx", size=415 << 20, sha256=SHA),)))
    larger = larger.replace(model=larger.model.replace(embedding_dim=768, max_seq_length=512))

    def fits(strategy: str, available: float) -> bool:
        try:
            return bool(choose(larger, machine(available_memory_mb=available), strategy))
        except NoCompatibleArtifact:
            return False

    assert [fits("lazy", 107.0), fits("lazy", 160.0)] == [False, True]
    assert [fits("background", 464.0), fits("background", 500.0)] == [False, True]


def test_the_smaller_artifact_is_taken_where_the_better_one_does_not_fit() -> None:
    def chosen(available: float) -> str:
        here = machine(available_memory_mb=available, loaded_engines=("torch",))
        return choose(bundle(BIG_TORCH, BIG), here, "cached").artifact.id

    assert chosen(171.0) == "torchscript"
    assert chosen(169.0) == "onnx"


def test_the_shortage_is_told_in_whole_megabytes_and_an_unknown_amount_is_enough() -> None:
    model = bundle().model
    needed = memory_needed_mb(model, BIG, machine(), quick_start=False)
    assert memory_shortage(model, BIG, machine(available_memory_mb=needed), quick_start=False) is None
    assert memory_shortage(model, BIG, machine(available_memory_mb=0.0), quick_start=False) is None
    short = memory_shortage(model, BIG, machine(available_memory_mb=needed - 1), quick_start=False)
    assert short == f"memory: needs about {needed:.0f} MB, {needed - 1:.0f} MB can be used"


def test_an_engine_that_is_loaded_needs_less_memory() -> None:
    model = bundle().model
    loaded = memory_needed_mb(model, BIG_TORCH, machine(loaded_engines=("torch",)), quick_start=True)
    assert loaded == memory_needed_mb(model, BIG_TORCH, machine(), quick_start=True) - 120
