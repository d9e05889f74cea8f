"""The tree of errors, their messages and their attributes."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from firstvec import errors
from firstvec.errors import (
    ArtifactError,
    BuildError,
    BulkError,
    BundleNotFound,
    ClosedError,
    ExportError,
    FirstvecError,
    IncompatibleArtifact,
    InputChanged,
    InputError,
    IntegrityError,
    JobChanged,
    LoadError,
    LoadTimeout,
    ManifestError,
    MissingDependency,
    NoCompatibleArtifact,
    OutputError,
    OutputInUse,
    QualityError,
    QuantizationError,
    RowError,
    SelfTestError,
    SignatureError,
    SourceError,
    TransferError,
    UnsupportedManifestVersion,
    WorkerError,
    printable,
)
from tests.conftest import Fresh

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and value.__module__ == errors.__name__
}

INSTANCES: dict[type[FirstvecError], FirstvecError] = {
    FirstvecError: FirstvecError("something is wrong; do something else"),
    ManifestError: ManifestError("/b/firstvec.json: artifacts[2].files[0].sha256", "is missing"),
    UnsupportedManifestVersion: UnsupportedManifestVersion("/b/firstvec.json", "2.0", "1"),
    SignatureError: SignatureError("/b/model.sig", "is of another bundle", "sign the bundle with `firstvec sign`"),
    BundleNotFound: BundleNotFound("org/model", ["/first", "/second"], ["other", "another"]),
    ArtifactError: ArtifactError("onnx-fp32", "cannot be used; use another"),
    IntegrityError: IntegrityError("/b/model.onnx", "10 bytes", "9 bytes", "onnx-fp32"),
    IncompatibleArtifact: IncompatibleArtifact("onnx-fp32", "onnxruntime cannot load it; reinstall it"),
    SelfTestError: SelfTestError("onnx-int8", "onnxruntime 1.32.0", 0.0781, 0.041),
    NoCompatibleArtifact: NoCompatibleArtifact(
        "org/model",
        "x86_64, avx2, 2 cores",
        [("onnx-int8", "isa: needs avx512_vnni, this CPU has avx2"), ("torchscript", "torch: not installed")],
        "Install onnxruntime.",
    ),
    LoadError: LoadError("org/model could not be loaded: OSError: no space left; free some space"),
    LoadTimeout: LoadTimeout("org/model", 2.5),
    ClosedError: ClosedError("the provider was closed; get a new one"),
    InputError: InputError("is bytes, not str; decode it", 3),
    MissingDependency: MissingDependency("convert_to_tensor", "torch", "firstvec[torch]", "take output='numpy'"),
    TransferError: TransferError("oci://host/repo:tag", "refused (403 Forbidden)", "log in", is_passing=True),
    BulkError: BulkError("the run stopped; run it again"),
    RowError: RowError("a.jsonl", 7, "is null"),
    InputChanged: InputChanged("a.jsonl", "was replaced by another file"),
    JobChanged: JobChanged("out", [("option dtype", "'float32'", "'int8'")]),
    OutputError: OutputError("out/part-00000.parquet", "No space left on device", "free some space"),
    OutputInUse: OutputInUse("out"),
    WorkerError: WorkerError("a worker process ended; run it again"),
    BuildError: BuildError("the build was stopped; free some space"),
    SourceError: SourceError("org/model: no such revision; pin another"),
    ExportError: ExportError("org/model: cannot be traced; skip TorchScript"),
    QuantizationError: QuantizationError("org/model: has no MatMul; skip INT8"),
    QualityError: QualityError("onnx-int8", "cosine_min", 0.93, ">=", 0.95),
}

PARTS: dict[type[FirstvecError], tuple[str, ...]] = {
    ManifestError: ("/b/firstvec.json: artifacts[2].files[0].sha256", "is missing", "rebuild", "`firstvec build`"),
    UnsupportedManifestVersion: ("/b/firstvec.json", "format_version 2.0", "reads 1.x", "upgrade firstvec"),
    BundleNotFound: (
        "'org/model'",
        "/first",
        "/second",
        "other, another",
        "`firstvec build org/model`",
        "FIRSTVEC_ARTIFACTS",
    ),
    SignatureError: ("/b/model.sig", "is of another bundle", "sign the bundle"),
    IntegrityError: ("onnx-fp32", "/b/model.onnx", "expected 10 bytes", "found 9 bytes", "restore", "rebuild"),
    SelfTestError: (
        *("onnx-int8", "self-test failed", "onnxruntime 1.32.0", "0.0781", "at most 0.041"),
        *("files are the ones that were built", "`firstvec doctor`", "another version of the engine"),
    ),
    NoCompatibleArtifact: (
        "org/model",
        "x86_64, avx2, 2 cores",
        "onnx-int8: isa: needs avx512_vnni, this CPU has avx2",
        "torchscript: torch: not installed",
        "Install onnxruntime.",
    ),
    LoadTimeout: ("org/model", "2.5 s", "goes on", "call get_provider() again", "larger timeout"),
    InputError: ("text 3", "is bytes, not str", "decode it"),
    MissingDependency: ("convert_to_tensor", "torch", "pip install 'firstvec[torch]'", "; or take output='numpy'"),
    TransferError: ("oci://host/repo:tag", "refused (403 Forbidden)", "log in"),
    RowError: ("a.jsonl", "row 7 (counted from 0)", "is null", "--on-error skip"),
    InputChanged: ("a.jsonl", "was replaced by another file while it was read", "--overwrite"),
    JobChanged: ("out was begun with", "option dtype: was 'float32', is 'int8'", "--overwrite"),
    OutputError: ("out/part-00000.parquet", "No space left on device", "free some space"),
    OutputInUse: ("out", "another run writes there now", "another --output"),
    QualityError: ("onnx-int8", "cosine_min is 0.93", ">= 0.95", "--only", "lower the threshold"),
}
"""Class that makes its own message → what was wrong, where, and what to do next."""


def drawn_tree() -> dict[str, str | None]:
    """Return class → parent, as the docstring of the module draws them."""
    tree: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").partition("::\n")[2].splitlines():
        branch = max(line.find("├"), line.find("└"))
        words = line[branch:].replace("├── ", "").replace("└── ", "").split() if branch >= 0 else line.split()
        if not words or (branch < 0 and tree):
            continue
        # The root is drawn four columns in, and each level four columns further.
        level = branch // 4 if branch >= 0 else 0
        above[level:] = [words[0]]
        tree[words[0]] = above[level - 1] if level else None
    return tree


def test_the_docstring_draws_every_class_and_no_other() -> None:
    tree = drawn_tree()
    assert len(tree) > 15
    assert sorted(tree) == sorted(CLASSES)


@pytest.mark.parametrize(("name", "parent"), drawn_tree().items())
def test_each_class_has_the_parent_that_the_docstring_draws(name: str, parent: str | None) -> None:
    assert CLASSES[name].__bases__[0].__name__ == (parent or "Exception")


def test_a_timeout_is_also_the_standard_one_and_a_bad_argument_a_value_error() -> None:
    assert issubclass(LoadTimeout, TimeoutError)
    assert issubclass(InputError, ValueError)


def test_every_class_has_a_representative_here() -> None:
    assert set(INSTANCES) == set(CLASSES.values())
    assert all(type(error) is kind for kind, error in INSTANCES.items())


def test_every_class_that_makes_its_own_message_has_its_parts_here() -> None:
    own = {kind for kind in CLASSES.values() if "__init__" in vars(kind)}
    assert own - {ArtifactError} == set(PARTS)


@pytest.mark.parametrize(
    ("kind", "part"), [(kind, part) for kind, parts in PARTS.items() for part in parts], ids=lambda value: str(value)
)
def test_a_message_says_what_where_and_what_next(kind: type[FirstvecError], part: str) -> None:
    assert part in str(INSTANCES[kind])


def test_a_bundle_that_was_looked_for_nowhere_says_so() -> None:
    text = str(BundleNotFound("org/model", []))
    assert "nowhere" in text
    assert "are there" not in text
    assert "These bundles are there: other, another." in str(INSTANCES[BundleNotFound])


@pytest.mark.parametrize("path", ["/b", "./b", "~/b"])
def test_a_path_at_which_there_is_no_bundle_is_not_offered_as_the_model_to_build(path: str) -> None:
    text = str(BundleNotFound(path, [path]))
    assert "Build a bundle with `firstvec build`, or set FIRSTVEC_ARTIFACTS" in text
    assert f"firstvec build {path}" not in text


def test_out_of_an_archive_a_missing_bundle_and_engine_have_a_cause(
    fresh: Fresh, tiny_built: Path, tmp_path: Path
) -> None:
    """In a zipapp, the bundle and the compiled module are there, and cannot be found."""
    shutil.copytree(Path(errors.__file__).parent, tmp_path / "app/firstvec", ignore=shutil.ignore_patterns("*.pyc"))
    archive = shutil.make_archive(str(tmp_path / "app"), "zip", tmp_path / "app")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from firstvec import FirstvecError, get_embedding_provider\n"
        "try: get_embedding_provider(sys.argv[2], artifact=sys.argv[3] or None)\n"
        "except FirstvecError as error: print(type(error).__name__, error)"
    )
    for model, artifact, error in (
        ("no-such-model", "", "BundleNotFound"),
        (str(tiny_built), "native-int8", "NoCompatibleArtifact"),
    ):
        printed = fresh(code, archive, model, artifact).stdout
        assert printed.startswith(error)
        assert f"firstvec runs out of the archive {archive}. " in printed
        assert "pack the app with shiv or pex" in printed
    assert "archive" not in str(BundleNotFound("org/model", []))


def test_a_file_that_cannot_be_read_is_not_called_another_file() -> None:
    error = IntegrityError("/b/model.onnx", "10 bytes", "Permission denied", "onnx-fp32", unreadable=True)
    assert str(error).startswith(
        "onnx-fp32: /b/model.onnx cannot be read (Permission denied), so firstvec cannot verify it; let this user"
    )
    assert "not the file that was built" not in str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("größe 日本 😀", "größe 日本 😀"),
        ("two\nlines", "two\nlines"),
        ("red\x1b[31m", "red\\x1b[31m"),
        ("a\tb\r\n", "a\\tb\\r\n"),
        ("\x9b\udcff\u202e", "\\x9b\\udcff\\u202e"),
        ("", ""),
    ],
)
def test_a_text_for_a_terminal_has_its_control_characters_spelled_out(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_an_artifact_error_without_an_artifact_starts_with_the_reason() -> None:
    assert str(IntegrityError("/b/tokenizer.json", "1 bytes", "2 bytes")).startswith("/b/tokenizer.json is not")


def test_an_input_error_without_an_index_names_no_text() -> None:
    error = InputError("batch_size 0 is not a positive integer")
    assert str(error) == "batch_size 0 is not a positive integer"
    assert error.index is None


def test_the_first_text_is_named_by_its_index_too() -> None:
    assert str(InputError("is None, not str", 0)).startswith("text 0: ")


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        (ManifestError, {"path": "/b/firstvec.json: artifacts[2].files[0].sha256", "reason": "is missing"}),
        (UnsupportedManifestVersion, {"path": "/b/firstvec.json", "version": "2.0"}),
        (BundleNotFound, {"name": "org/model", "searched": ("/first", "/second"), "found": ("other", "another")}),
        (ArtifactError, {"artifact": "onnx-fp32", "reason": "cannot be used; use another"}),
        (
            IntegrityError,
            {"artifact": "onnx-fp32", "file": "/b/model.onnx", "expected": "10 bytes", "actual": "9 bytes"},
        ),
        (IncompatibleArtifact, {"artifact": "onnx-fp32"}),
        (
            NoCompatibleArtifact,
            {
                "model": "org/model",
                "profile": "x86_64, avx2, 2 cores",
                "rejected": (
                    ("onnx-int8", "isa: needs avx512_vnni, this CPU has avx2"),
                    ("torchscript", "torch: not installed"),
                ),
            },
        ),
        (SelfTestError, {"artifact": "onnx-int8", "difference": 0.0781, "allowed": 0.041}),
        (LoadTimeout, {"seconds": 2.5}),
        (InputError, {"reason": "is bytes, not str; decode it", "index": 3}),
        (MissingDependency, {"package": "torch", "install": "firstvec[torch]"}),
        (TransferError, {"address": "oci://host/repo:tag", "reason": "refused (403 Forbidden)", "is_passing": True}),
        (QualityError, {"artifact": "onnx-int8", "metric": "cosine_min", "value": 0.93, "threshold": 0.95}),
    ],
)
def test_the_facts_of_an_error_are_attributes(kind: type[FirstvecError], attributes: dict[str, object]) -> None:
    assert {name: getattr(INSTANCES[kind], name) for name in attributes} == attributes


@pytest.mark.parametrize(
    "duplicate",
    [
        pytest.param(lambda error: pickle.loads(pickle.dumps(error)), id="pickle"),
        pytest.param(copy.copy, id="copy"),
    ],
)
@pytest.mark.parametrize("kind", INSTANCES)
def test_an_error_survives_the_way_between_processes(
    kind: type[FirstvecError], duplicate: Callable[[FirstvecError], FirstvecError]
) -> None:
    error = INSTANCES[kind]
    back = duplicate(error)
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)
