"""A bundle as a model package of ONNX Runtime. onnxruntime's own classes open every package."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from firstvec import OptimizedEmbeddingLoader
from firstvec.bundle.manifest import Manifest
from firstvec.engines.onnxruntime_binding import onnxruntime  # that module turns the telemetry off
from firstvec.errors import (
    BuildError,
    IncompatibleArtifact,
    InputError,
    IntegrityError,
    ManifestError,
    MissingDependency,
)
from firstvec_build.shipping.ort_package import export
from tests.build.conftest import INT8_ELSEWHERE, INT8_HERE
from tests.conftest import Fresh, edit_manifest

TEXT = "how do I reset my password?"


@pytest.fixture(scope="module")
def package(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole tiny bundle as a package. Do not change it."""
    return export(Manifest.read(tiny_built), tmp_path_factory.mktemp("packages") / "tiny").path


def select(root: Path) -> Any:
    """Let onnxruntime choose a variant, as a program does that knows nothing of firstvec."""
    context = onnxruntime.ModelPackageContext(str(root))
    assert context.get_component_names() == ["model"]
    return context.select_component("model", onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions()))


def variants_of(root: Path) -> dict[str, dict[str, Any]]:
    """Return the variants that onnxruntime reads, each with the paths of its model and of its tokenizer."""
    package = onnxruntime.ModelPackage.open(str(root))
    [component] = package.get_info()["components"]
    found = {}
    for variant in component["variants"]:
        told = {executor: json.loads(text) for executor, text in variant["executor_info"].items()}
        assert {*told} == {"ort", "firstvec"}
        paths = {"model": told["ort"]["model_file"], "tokenizer": told["firstvec"]["tokenizer"]}
        found[variant["name"]] = variant | {
            name: package.resolve_string_ref(path, variant["variant_directory"], must_exist=True)
            for name, path in paths.items()
        }
    package.close()
    return found


def embed(session: Any, tokenizer: str) -> np.ndarray:
    encoding = Tokenizer.from_file(tokenizer).encode(TEXT)
    feed = {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])}
    vector: np.ndarray = session.run(["sentence_embedding"], feed)[0][0]
    return vector


def expected_vector(bundle: Path, artifact: str) -> np.ndarray:
    vector: np.ndarray = OptimizedEmbeddingLoader(str(bundle), artifact=artifact).get_provider().embed_query(TEXT)
    return vector


def contents_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_onnxruntime_opens_the_package_and_computes_the_same_vector(package: Path, tiny_built: Path) -> None:
    context = onnxruntime.ModelPackageContext(str(package))
    assert context.get_schema_version() == 1
    ids = [artifact.id for artifact in Manifest.read(tiny_built).artifacts if artifact.format == "onnx"]
    assert sorted(context.get_variant_names("model")) == sorted(ids)
    assert {context.get_variant_ep_name("model", name) for name in ids} == {"CPUExecutionProvider"}
    selected = select(package)
    assert selected.get_selected_variant_name() == "onnx-fp32"
    assert selected.get_selected_variant_folder_path() == str(package / "model" / "onnx-fp32")
    found = embed(selected.create_session(), variants_of(package)["onnx-fp32"]["tokenizer"])
    np.testing.assert_allclose(found, expected_vector(tiny_built, "onnx-fp32"), atol=1e-6)


@pytest.mark.parametrize("artifact", ["onnx-fp32", INT8_HERE])
def test_a_program_may_open_any_variant(artifact: str, package: Path, tiny_built: Path) -> None:
    variant = variants_of(package)[artifact]
    session = onnxruntime.InferenceSession(variant["model"], providers=[variant["ep"]])
    found = embed(session, variant["tokenizer"])
    assert float(found @ expected_vector(tiny_built, artifact)) > 0.9999


def test_a_package_of_one_artifact_is_opened_without_a_choice(tiny_built: Path, tmp_path: Path) -> None:
    done = export(Manifest.read(tiny_built), tmp_path / "new" / "package", only=[INT8_HERE])
    assert [variant.id for variant in done.variants] == [INT8_HERE]
    selected = select(done.path)
    assert selected.get_selected_variant_name() == INT8_HERE
    found = embed(selected.create_session(), variants_of(done.path)[INT8_HERE]["tokenizer"])
    assert float(found @ expected_vector(tiny_built, INT8_HERE)) > 0.9999


def test_the_real_bundle_as_a_package(bundle: Path, tmp_path: Path) -> None:
    """Vectors of all variants that this machine can run, and one model for two instruction sets."""
    done = export(Manifest.read(bundle), tmp_path / "package")
    selected = select(done.path)
    variants = variants_of(done.path)
    found = embed(selected.create_session(), variants["onnx-fp32"]["tokenizer"])
    np.testing.assert_allclose(found, expected_vector(bundle, "onnx-fp32"), atol=1e-6)
    found = embed(onnxruntime.InferenceSession(variants[INT8_HERE]["model"]), variants[INT8_HERE]["tokenizer"])
    assert float(found @ expected_vector(bundle, INT8_HERE)) > 0.9999
    assert variants["onnx-int8-avx512_vnni"]["model"] == variants["onnx-int8-arm64"]["model"]
    files = contents_of(done.path)
    assert done.size == sum(map(len, files.values()))
    assert len({sha256(content).digest() for content in files.values() if len(content) > 1000}) == len(
        [content for content in files.values() if len(content) > 1000]
    )
    shutil.rmtree(done.path)  # 137 MB


def test_what_a_variant_says_is_what_the_manifest_says(package: Path, tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    variants = variants_of(package)
    for artifact in manifest.artifacts:
        if artifact.format != "onnx":
            continue
        variant = variants[artifact.id]
        assert variant["compatibility_string"] == artifact.isa
        assert variant["device"] == "cpu"
        told = json.loads(variant["additional_metadata_json"])
        assert told["precision"] == artifact.precision
        assert told["quality"]["cosine_mean"] == artifact.quality.cosine_mean
        folder = Path(variant["model"]).parent
        assert told["files"] == {name: sha256((folder / name).read_bytes()).hexdigest() for name in told["files"]}
        assert Path(variant["model"]).name in told["files"]
        assert len(told["files"]) == len(artifact.files)
    info = onnxruntime.ModelPackage.open(str(package)).get_info()
    about = json.loads(info["additional_metadata_json"])["firstvec"]
    assert about["bundle_sha256"] == sha256((tiny_built / "firstvec.json").read_bytes()).hexdigest()
    assert about["model"]["embedding_dim"] == manifest.model.embedding_dim
    assert (info["package_name"], info["layout"]) == ("tiny-bert", "portable")


def test_shared_assets_have_the_names_that_onnxruntime_computes(package: Path) -> None:
    folders = [*(package / "shared_assets").iterdir()]
    assert len(folders) == 2
    for folder in folders:
        uri = onnxruntime.ModelPackage.compute_directory_hash(str(folder))
        assert folder.name == uri.replace(":", "-")


def test_transformers_opens_the_shared_tokenizer(package: Path, tiny_built: Path) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="the toolchain is not installed")
    folder = Path(variants_of(package)["onnx-fp32"]["tokenizer"]).parent
    found = transformers.AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    assert found == Tokenizer.from_file(str(tiny_built / "tokenizer.json")).encode(TEXT).ids


def test_onnxruntime_takes_the_first_variant_whatever_it_needs(package: Path, tmp_path: Path) -> None:
    """This is why variants for any processor come first. If this test fails, onnxruntime has begun to check."""
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    document = json.loads((copy / "manifest.json").read_text("utf-8"))
    variants = document["components"]["model"]["variants"]
    document["components"]["model"]["variants"] = {INT8_ELSEWHERE: variants.pop(INT8_ELSEWHERE), **variants}
    (copy / "manifest.json").write_text(json.dumps(document), "utf-8")
    assert select(copy).get_selected_variant_name() == INT8_ELSEWHERE


def test_variants_for_any_processor_come_first(tiny_bundle: Path, tmp_path: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["artifacts"].reverse())
    done = export(Manifest.read(tiny_bundle), tmp_path / "package")
    assert [variant.isa is None for variant in done.variants] == [True, False, False, False]
    assert select(done.path).get_selected_variant_name() == "onnx-fp32"


def test_models_that_differ_share_nothing_though_their_weights_are_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    """The graph of one of two artifacts with the same weights gets another name, and so becomes another model."""
    import onnx

    path = tiny_bundle / "onnx" / "model_qint8_arm64.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.name = "another"
    rewrite(tiny_bundle, path, model.SerializeToString())
    done = export(Manifest.read(tiny_bundle), tmp_path / "package")
    variants = variants_of(done.path)
    for artifact in ("onnx-int8-avx512_vnni", "onnx-int8-arm64"):
        assert Path(variants[artifact]["model"]).parent == done.path / "model" / artifact
    assert len([*(done.path / "shared_assets").iterdir()]) == 1


def test_a_model_that_is_no_onnx_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    rewrite(tiny_bundle, tiny_bundle / "onnx" / "model_qint8_arm64.onnx", b"\xff" * 100)
    with pytest.raises(IncompatibleArtifact, match=r"onnx-int8-arm64: .*is not an ONNX model"):
        export(Manifest.read(tiny_bundle), tmp_path / "package")
    assert [*tmp_path.iterdir()] == [tiny_bundle]


def rewrite(root: Path, path: Path, content: bytes) -> None:
    """Change a file of a bundle, and its entry in the manifest."""
    path.write_bytes(content)
    name = path.relative_to(root).as_posix()

    def describe(document: dict[str, Any]) -> None:
        [entry] = [each for one in document["artifacts"] for each in one["files"] if each["path"] == name]
        entry |= {"size": len(content), "sha256": sha256(content).hexdigest()}

    edit_manifest(root, describe)


def test_the_same_bundle_gives_the_same_bytes(package: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for path in tiny_bundle.rglob("*"):
        os.utime(path, (1, 1))
    again = export(Manifest.read(tiny_bundle), tmp_path / "again").path
    assert contents_of(again) == contents_of(package)


def test_every_file_is_one_of_its_own_and_may_be_read(package: Path) -> None:
    for path in (package, *package.rglob("*")):
        status = path.lstat()
        assert oct(status.st_mode) == ("0o40755" if path.is_dir() else "0o100644")
        assert path.is_dir() or status.st_nlink == 1
    assert not [*package.parent.glob(".*")]


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def link_symbolically(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "damage", [change_byte, Path.unlink, link_symbolically, lambda path: path.with_name("second").hardlink_to(path)]
)
@pytest.mark.parametrize("name", ["onnx/model.onnx_data", "tokenizer.json"])
def test_a_damaged_file_is_not_exported(
    damage: Callable[[Path], None], name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(tiny_bundle)
    target = export(manifest, tmp_path / "out" / "package").path
    before = contents_of(target)
    damage(tiny_bundle / name)
    with pytest.raises(IntegrityError, match=name):
        export(manifest, target)
    assert contents_of(target) == before
    assert [*target.parent.iterdir()] == [target]


def test_a_manifest_that_was_changed_since_it_was_read_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    with pytest.raises(ManifestError, match="was changed since it was read"):
        export(manifest, tmp_path / "package")


def test_a_package_is_replaced_as_a_whole(tiny_built: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_built)
    target = export(manifest, tmp_path / "package").path
    export(manifest, target, only=["onnx-fp32"])
    assert select(target).get_selected_variant_name() == "onnx-fp32"
    assert [path.name for path in (target / "model").iterdir()] == ["onnx-fp32"]
    assert [*tmp_path.iterdir()] == [target]


def make_web_app(target: Path) -> None:
    target.mkdir()
    (target / "manifest.json").write_text('{"name": "an app", "additional_metadata": "firstvec"}')


def make_another_package(target: Path) -> None:
    target.mkdir()
    (target / "manifest.json").write_text('{"schema_version": "1.0", "components": {}, "additional_metadata": {}}')


def add_a_note(target: Path) -> None:
    (target / "notes.txt").touch()


@pytest.mark.parametrize(
    ("occupy", "message"),
    [
        (Path.touch, "is not a folder"),
        (lambda target: target.symlink_to("elsewhere"), "is not a folder"),
        (make_web_app, "is no model package of firstvec"),
        (make_another_package, "is no model package of firstvec"),
        (add_a_note, "is no model package of firstvec"),
    ],
)
def test_what_firstvec_did_not_write_is_not_replaced(
    occupy: Callable[[Path], None], message: str, tiny_built: Path, tmp_path: Path
) -> None:
    target = tmp_path / "package"
    (tmp_path / "elsewhere").mkdir()
    if occupy is add_a_note:
        export(Manifest.read(tiny_built), target, only=["onnx-fp32"])
    occupy(target)
    before = contents_of(tmp_path)
    with pytest.raises(BuildError, match=rf"{message}.*--ort-package"):
        export(Manifest.read(tiny_built), target)
    assert contents_of(tmp_path) == before
    assert {*tmp_path.iterdir()} == {target, tmp_path / "elsewhere"}


def test_an_empty_folder_is_replaced(tiny_built: Path, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    assert select(export(Manifest.read(tiny_built), tmp_path / "package").path)


@pytest.mark.parametrize("below", ["file", "file/deep", "read-only"])
def test_a_place_that_cannot_be_written_is_named(below: str, tiny_built: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "read-only").symlink_to("/proc/self")
    with pytest.raises(BuildError, match="choose another folder with --ort-package"):
        export(Manifest.read(tiny_built), tmp_path / below / "package")


def test_a_full_disk_leaves_nothing(tiny_built: Path, tmp_path: Path, fresh: Fresh) -> None:
    """A limit on the size of a file stands for the full disk: the write fails, as on a full disk."""
    code = """
import resource, signal, sys
from pathlib import Path
from firstvec.bundle.manifest import Manifest
from firstvec.errors import BuildError
from firstvec_build.shipping.ort_package import export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    export(Manifest.read(sys.argv[1]), Path(sys.argv[2]))
except BuildError as error:
    print(error)
"""
    (tmp_path / "out").mkdir()
    done = fresh(code, tiny_built, tmp_path / "out" / "package")
    assert "cannot be written (File too large)" in done.stdout
    assert not [*(tmp_path / "out").iterdir()]


def test_a_killed_export_leaves_no_package_and_the_next_one_clears_up(
    tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from firstvec.bundle.manifest import Manifest
from firstvec_build import publishing
from firstvec_build.shipping.ort_package import export
publishing.replace_folder = lambda folder, target: os.kill(os.getpid(), signal.SIGKILL)
export(Manifest.read(sys.argv[1]), Path(sys.argv[2]))
"""
    target = tmp_path / "out" / "package"
    assert fresh(code, tiny_built, target, check=False).returncode == -signal.SIGKILL
    [left] = target.parent.iterdir()
    assert left.name.startswith(".package.staging-")
    export(Manifest.read(tiny_built), target)
    assert [*target.parent.iterdir()] == [target]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("onnx-int4", "the bundle has no artifact 'onnx-int4': it has torchscript-fp32, onnx-fp32"),
        ("torchscript-fp32", "torchscript-fp32 is no ONNX artifact: export one of onnx-fp32, onnx-int8-avx2"),
    ],
)
def test_an_artifact_that_cannot_be_exported_is_named(
    only: str, message: str, tiny_built: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export(Manifest.read(tiny_built), tmp_path / "package", only=["onnx-fp32", only])
    assert not [*tmp_path.iterdir()]


def test_a_bundle_without_onnx_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    def keep_torchscript(document: dict[str, Any]) -> None:
        document["artifacts"] = [each for each in document["artifacts"] if each["format"] == "torchscript"]

    edit_manifest(tiny_bundle, keep_torchscript)
    with pytest.raises(InputError, match="tiny-bert has no ONNX artifact: it has torchscript-fp32"):
        export(Manifest.read(tiny_bundle), tmp_path / "package")


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "x" * 101])
def test_an_id_that_is_no_name_of_a_folder_is_refused(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["artifacts"][1].update(id=name))
    with pytest.raises(InputError, match="no folder can have this name"):
        export(Manifest.read(tiny_bundle), tmp_path / "package")


def test_without_onnx_only_the_comparison_of_models_is_missing(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    manifest = Manifest.read(tiny_built)
    with pytest.raises(MissingDependency, match="pip install 'onnx'"):
        export(manifest, tmp_path / "package")
    assert not [*tmp_path.iterdir()]
    assert select(export(manifest, tmp_path / "package", only=["onnx-fp32", "onnx-int8-avx2"]).path)
