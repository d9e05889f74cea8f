"""What users install: firstvec's own wheel, and wheels of bundles."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.metadata import Metadata

from firstvec import OptimizedEmbeddingLoader
from firstvec.bundle.manifest import Manifest
from firstvec.bundle.store import find_bundle
from firstvec.errors import (
    BuildError,
    InputError,
    IntegrityError,
    ManifestError,
    NoCompatibleArtifact,
    SignatureError,
)
from firstvec_build.shipping.signing import sign
from firstvec_build.shipping.wheel import pack, pack_parts
from tests.conftest import REPOSITORY, Fresh, edit_manifest
from tests.keys import SIGNATURE, Pair, forge, make_keys, peer_accepts, sign_with_peer
from tests.package_index import check_with_twine

BUNDLE = "firstvec_bundles/tiny-bert"


@pytest.fixture(scope="module")
def firstvec_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, REPOSITORY)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bundle_wheel(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(Manifest.read(tiny_built), tmp_path_factory.mktemp("bundle-wheel"))


@pytest.fixture(scope="module")
def installed(firstvec_wheel: Path, bundle_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment, with both wheels and what any bundle needs (the extra all)."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    pip(
        *("--python", programs / "python", "install", "--constraint", REPOSITORY / "constraints.txt"),
        *(f"{firstvec_wheel}[all]", bundle_wheel),
    )
    return programs


def pip(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run(
    installed: Path, program: str, *arguments: object, cwd: Path, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program of the fresh environment, away from the checkout and with none of its settings."""
    ours = ("FIRSTVEC_", "PYTHON", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [str(installed / program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment | {"HOME": str(cwd)},
        timeout=300,
    )
    if check:
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done


def test_wheel_holds_both_packages_and_nothing_of_the_checkout(firstvec_wheel: Path) -> None:
    with zipfile.ZipFile(firstvec_wheel) as archive:
        names = set(archive.namelist())
        pinned = archive.read("firstvec_build/data/models.toml")
        [metadata] = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"firstvec", "firstvec_build"}
    assert {"firstvec/py.typed", "firstvec_build/py.typed", "firstvec_build/data/sentences.json"} <= names
    assert pinned == (REPOSITORY / "artifacts" / "models.toml").read_bytes()
    modules = {
        path.relative_to(package.parent).as_posix()
        for package in (REPOSITORY / "runtime" / "firstvec", REPOSITORY / "build_tools" / "firstvec_build")
        for path in package.rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    for requirement in ("onnxruntime", "tokenizers", "numpy"):
        assert f"Requires-Dist: {requirement}" in metadata
    assert not [line for line in metadata.splitlines() if line.startswith("Requires-Dist: torch") and ";" not in line]


def test_installed_package_is_imported_from_its_environment(installed: Path, tmp_path: Path) -> None:
    code = """
import json, sys
from importlib.metadata import packages_distributions, version
from importlib.resources import files
import firstvec, firstvec_build.source
print(json.dumps([
    firstvec.__file__, version("firstvec") == firstvec.__version__,
    (files("firstvec") / "py.typed").is_file(), firstvec_build.source._read_pins()["default"],
    sorted({"torch", "typer", "onnx", "transformers"} & set(packages_distributions())),
]))
"""
    file, same_version, typed, default, extras = json.loads(run(installed, "python", "-c", code, cwd=tmp_path).stdout)
    assert Path(file).is_relative_to(installed.parent)
    assert same_version
    assert typed
    assert default == "sentence-transformers/all-MiniLM-L6-v2"
    assert extras == []  # an app does not ship the optional packages


EMBED = """
import json, sys
from firstvec import get_embedding_provider
provider = get_embedding_provider("tiny-bert", sys.argv[1])
print(json.dumps([provider.manifest.root, provider.artifact.id, provider.embed_query(sys.argv[2]).tolist()]))
"""


@pytest.mark.parametrize("strategy", ["progressive", "quantized"])
def test_installed_bundle_is_found_by_name_and_gives_the_same_vector(
    strategy: str, installed: Path, tiny_built: Path, tmp_path: Path
) -> None:
    done = run(installed, "python", "-c", EMBED, strategy, "some text", cwd=tmp_path)
    root, artifact, vector = json.loads(done.stdout)
    loader = OptimizedEmbeddingLoader(str(tiny_built), strategy, device="cpu")
    loader.start_loading()
    expected = loader.get_provider()
    assert Path(root).is_relative_to(installed.parent)
    assert root.endswith(BUNDLE)
    assert artifact == expected.artifact.id
    assert np.array_equal(np.float32(vector), expected.embed_query("some text"))


def test_commands_of_the_runtime_work_and_the_others_say_what_they_need(installed: Path, tmp_path: Path) -> None:
    assert "tiny-bert" in run(installed, "firstvec", "list", cwd=tmp_path).stdout
    for command in ("build", "wheel"):
        done = run(installed, "firstvec", command, cwd=tmp_path, check=False)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "pip install 'firstvec[cli]'" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1


def test_building_without_the_toolchain_says_how_to_install_it(installed: Path, tmp_path: Path) -> None:
    code = """
import sys
from firstvec import FirstvecError
from firstvec_build.pipeline import build
try:
    build(sys.argv[1], sys.argv[2])
except FirstvecError as error:
    print(error)
"""
    model = tmp_path / "model"
    model.mkdir()
    (model / "modules.json").write_text("[]")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # a whole file without a tensor
    done = run(installed, "python", "-c", code, model, tmp_path / "bundles", cwd=tmp_path)
    assert "pip install 'firstvec[build]'" in done.stdout
    assert not (tmp_path / "bundles").exists()


def test_bundle_wheel_holds_the_bundle(bundle_wheel: Path, tiny_built: Path) -> None:
    stem = bundle_wheel.name.removesuffix("-py3-none-any.whl")
    assert re.fullmatch(r"firstvec_bundle_tiny_bert-0\.\d+", stem)
    with zipfile.ZipFile(bundle_wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    packed = {name.removeprefix(f"{BUNDLE}/"): data for name, data in contents.items() if name.startswith(BUNDLE)}
    assert packed == {
        path.relative_to(tiny_built).as_posix(): path.read_bytes() for path in tiny_built.rglob("*") if path.is_file()
    }
    assert {name.split("/")[0] for name in contents} == {"firstvec_bundles", f"{stem}.dist-info"}
    assert b"\nRequires-Dist: firstvec>=0.1\n" in contents[f"{stem}.dist-info/METADATA"]


def test_record_of_the_bundle_wheel_is_right(bundle_wheel: Path) -> None:
    with zipfile.ZipFile(bundle_wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    [record] = [name for name in contents if name.endswith(".dist-info/RECORD")]
    rows = {name: (digest, size) for name, digest, size in csv.reader(io.StringIO(contents[record].decode()))}
    assert rows.pop(record) == ("", "")
    expected = {
        name: ("sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("="), str(len(data)))
        for name, data in contents.items()
        if name != record
    }
    assert rows == expected


def test_bundle_wheel_holds_its_bill_of_materials(bundle_wheel: Path, tiny_built: Path, tmp_path: Path) -> None:
    def files(wheel: Path) -> set[str]:
        distribution = wheel.name.partition("-")[0]
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            [name] = [each for each in names if each.endswith(f".dist-info/sboms/{distribution}.cdx.json")]
            bill = json.loads(archive.read(name))
            digests = {
                each.split("/", 2)[2]: hashlib.sha256(archive.read(each)).hexdigest()
                for each in names
                if each.startswith("firstvec_bundles/")
            }
        listed = {each["name"]: each["hashes"][0]["content"] for each in bill["components"] if each["type"] == "file"}
        assert listed == digests
        assert bill["metadata"]["component"]["licenses"] == [{"license": {"acknowledgement": "declared", "id": "MIT"}}]
        serials.append(bill["serialNumber"])
        return {*digests}

    serials: list[str] = []
    some = pack(Manifest.read(tiny_built), tmp_path, only=["onnx-fp32"])
    assert files(some) < files(bundle_wheel)
    paths = pack_parts(Manifest.read(tiny_built), tmp_path)
    assert {file for path in paths for file in files(path)} == files(bundle_wheel)
    assert len({*serials}) == len(paths) + 2


def test_same_bundle_gives_the_same_wheel(bundle_wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    parts = pack_parts(Manifest.read(tiny_bundle), tmp_path / "parts")
    for path in tiny_bundle.rglob("*"):
        os.utime(path, (1, 1))
    manifest = Manifest.read(tiny_bundle)
    for again, before in zip(
        [pack(manifest, tmp_path / "new" / "folder"), *pack_parts(manifest, tmp_path / "again")],
        [bundle_wheel, *parts],
        strict=True,
    ):
        assert again.name == before.name
        assert again.read_bytes() == before.read_bytes()


def test_twine_and_packaging_accept_every_wheel(tiny_built: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_built)
    pack(manifest, tmp_path)
    pack(manifest, tmp_path, only=["onnx-fp32"], version="1.0")
    paths = [*pack_parts(manifest, tmp_path, version="2026.11.30")]
    assert len([*tmp_path.iterdir()]) == len(paths) + 2
    check_with_twine(*tmp_path.iterdir())
    for path in tmp_path.iterdir():
        metadata = read_metadata(path)
        assert metadata.license_expression == "MIT"
        assert metadata.version is not None
        assert metadata.version.local is None
        assert path.name.startswith(f"{metadata.name.replace('-', '_')}-{metadata.version}-")


def test_wheel_whose_page_would_not_be_rendered_is_found(tiny_built: Path, tmp_path: Path) -> None:
    path = pack(Manifest.read(tiny_built), tmp_path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data.partition(b"\n\n")[0] + b"\n" if name.endswith("/METADATA") else data)
    with pytest.raises(AssertionError, match="long_description"):
        check_with_twine(path)


def read_metadata(path: Path) -> Metadata:
    """Return a wheel's metadata, which must keep every rule of the specification."""
    with zipfile.ZipFile(path) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Metadata.from_email(archive.read(name))


# The version


def test_other_content_has_another_version(tiny_bundle: Path, tmp_path: Path, keys: Pair) -> None:
    first = pack(Manifest.read(tiny_bundle), tmp_path)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    second = pack(Manifest.read(tiny_bundle), tmp_path)
    sign(Manifest.read(tiny_bundle), keys.private)
    third = pack(Manifest.read(tiny_bundle), tmp_path)
    edit_manifest(tiny_bundle, lambda document: document["model"].pop("license"))
    (tiny_bundle / SIGNATURE).unlink()
    others = [pack(Manifest.read(tiny_bundle), tmp_path, license=each) for each in ("MIT", "Apache-2.0")]
    names = {path.name for path in (first, second, third, *others)}
    assert len(names) == 5
    assert all(re.fullmatch(r"firstvec_bundle_tiny_bert-0\.\d{1,10}-py3-none-any\.whl", name) for name in names)


def test_version_that_is_given_is_taken_and_a_wheel_of_other_bytes_is_reported(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    replaced: list[Path] = []

    def pack_again() -> Path:
        return pack(Manifest.read(tiny_bundle), tmp_path, version="v1.02", report_replaced=replaced.append)

    path = pack_again()
    assert path.name == "firstvec_bundle_tiny_bert-1.2-py3-none-any.whl"
    assert pack_again() == path
    assert replaced == []
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    assert pack_again() == path
    assert replaced == [path]


# Wheels beside one another


def test_no_two_wheels_have_a_file_in_common(tiny_built: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_built)
    paths = [pack(manifest, tmp_path, only=only) for only in ([], ["onnx-fp32"], ["native-int8"])]
    paths += pack_parts(manifest, tmp_path)
    seen: set[str] = set()
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            names = {*archive.namelist()}
        assert not seen & names
        seen |= names
    assert len(paths) == len(manifest.artifacts) + 4


def test_parts_of_some_artifacts_have_the_same_base(tiny_built: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_built)
    base, *parts = pack_parts(manifest, tmp_path / "all")
    same, part = pack_parts(manifest, tmp_path / "some", only=["native-int8"])
    assert (same.name, same.read_bytes()) == (base.name, base.read_bytes())
    assert part.name in [path.name for path in parts]
    requirement = f"firstvec-bundle-tiny-bert-base=={read_metadata(base).version}"
    assert [str(each) for each in read_metadata(part).requires_dist or []] == [requirement, "firstvec>=0.1"]


def test_parts_come_and_go_and_the_runtime_takes_what_is_installed(
    installed: Path, tiny_bundle: Path, keys: Pair, tmp_path: Path
) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(name="org/parts"))
    sign(Manifest.read(tiny_bundle), keys.private)
    pack_parts(Manifest.read(tiny_bundle), tmp_path / "index")
    names = [f"firstvec-bundle-parts-{each}" for each in ("part-native-int8", "part-native-fp32", "base")]
    python = ("--python", installed / "python")
    [site] = installed.parent.glob("lib/python*/site-packages")
    root = site / "firstvec_bundles" / "parts-parts"

    def change(*arguments: object) -> str:
        """Let pip change the environment, and return the artifact that a program then takes. It prints no warning."""
        pip(*python, *arguments)
        code = EMBED.replace("tiny-bert", "parts")
        done = run(installed, "python", "-c", code, "progressive", "text", cwd=tmp_path)
        found, artifact, _ = json.loads(done.stdout)
        assert found == str(root)
        return str(artifact)

    index = ("install", "--no-index", "--find-links", tmp_path / "index")
    # Without a part in full precision, INT8 is all that there is.
    assert change(*index, names[0]) == "native-int8"
    found = json.loads(run(installed, "firstvec", "explain", "parts", "--json", cwd=tmp_path).stdout)
    reason = found["strategies"]["lazy"]["rejected"]["onnx-fp32"]
    assert reason == "not installed: its files are in another wheel of the bundle"
    inspected = run(installed, "firstvec", "inspect", "parts", cwd=tmp_path).stdout
    assert re.search(r"^  onnx-fp32 +not installed$", inspected, re.MULTILINE)
    verified = run(installed, "firstvec", "verify", "parts", "--strict", cwd=tmp_path).stdout
    assert "  --   onnx-fp32: not installed\n" in verified
    assert "BAD" not in verified
    assert find_bundle(str(root), str(keys.public)).root == str(root)
    assert (root / SIGNATURE).read_bytes() == (tiny_bundle / SIGNATURE).read_bytes()
    # An artifact is added, and taken away.
    assert change(*index, names[1]) == "native-fp32"
    assert change("uninstall", "--yes", names[1]) == "native-int8"
    asked = ("encode", "--model", "parts", "--artifact", "onnx-fp32", "text")
    failed = run(installed, "firstvec", *asked, cwd=tmp_path, check=False)
    assert failed.returncode == 1
    assert "Install the wheel with this artifact" in failed.stderr
    # Nothing is left.
    pip(*python, "uninstall", "--yes", names[0])
    with pytest.raises(NoCompatibleArtifact, match="Install the wheel with one of the artifacts"):
        OptimizedEmbeddingLoader(str(root)).choose()
    pip(*python, "uninstall", "--yes", names[2])
    assert not root.exists()
    assert [path.name for path in root.parent.iterdir()] == ["tiny-bert"]


def test_part_of_another_build_is_not_used(tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pip warns of a part whose base has another version, and installs the base all the same."""
    root = tmp_path / "site" / f"{BUNDLE}-parts"

    def install(only: list[str]) -> None:
        for path in pack_parts(Manifest.read(tiny_bundle), tmp_path / "wheels", only=only):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(tmp_path / "site")

    install(["native-fp32", "onnx-fp32"])
    changed = tiny_bundle / "native" / "model.fvw"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    edit_manifest(tiny_bundle, lambda document: update_digests(document, tiny_bundle))
    install(["onnx-fp32"])
    provider = OptimizedEmbeddingLoader(str(root)).get_provider()
    assert provider.artifact.id == "onnx-fp32"
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "native/model.fvw is not the file that was built" in warning


def update_digests(document: dict[str, Any], bundle: Path) -> None:
    """Let the manifest describe the files as they are."""
    for artifact in document["artifacts"]:
        for file in artifact["files"]:
            data = (bundle / file["path"]).read_bytes()
            file.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_missing_file_of_a_folder_or_of_an_installed_part_is_damage(tiny_bundle: Path, tmp_path: Path) -> None:
    for path in (tiny_bundle / "onnx").iterdir():
        path.unlink()
    assert find_bundle(str(tiny_bundle)).absent == ()
    installed = tmp_path / "site" / BUNDLE
    installed.parent.mkdir(parents=True)
    tiny_bundle.rename(installed)
    absent = [artifact.id for artifact in find_bundle(str(installed)).absent]
    assert absent == ["onnx-fp32", "onnx-int8-avx2", "onnx-int8-avx512_vnni", "onnx-int8-arm64"]
    (installed / "onnx" / "model.onnx").touch()  # one of two files
    assert "onnx-fp32" not in [artifact.id for artifact in find_bundle(str(installed)).absent]
    with pytest.raises(BuildError, match="onnx-int8-avx2 is not installed; ship the folder that"):
        pack(find_bundle(str(installed)), tmp_path)


# The licence


def test_licence_is_asked_for_where_the_bundle_states_none(tiny_bundle: Path, tmp_path: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].pop("license"))
    for function in (pack, pack_parts):
        with pytest.raises(InputError, match=r"states no licence.*give it, such as --license Apache-2\.0"):
            function(Manifest.read(tiny_bundle), tmp_path / "wheels")
    assert not (tmp_path / "wheels").exists()
    path = pack(Manifest.read(tiny_bundle), tmp_path / "wheels", license="LicenseRef-ours")
    assert read_metadata(path).license_expression == "LicenseRef-ours"
    with zipfile.ZipFile(path) as archive:
        [bill] = [archive.read(name) for name in archive.namelist() if name.endswith(".cdx.json")]
    assert b'"LicenseRef-ours"' in bill


def test_text_of_the_licence_is_packed_where_installers_look(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "LICENSE.txt").write_text("the text", "utf-8")
    digest = hashlib.sha256(b"the text").hexdigest()
    entry = {"path": "LICENSE.txt", "size": 8, "sha256": digest}
    edit_manifest(tiny_bundle, lambda document: document["support_files"].append(entry))
    paths = [pack(Manifest.read(tiny_bundle), tmp_path), *pack_parts(Manifest.read(tiny_bundle), tmp_path)]
    check_with_twine(*paths)
    for path in paths:
        assert read_metadata(path).license_files == ["LICENSE.txt"]
        with zipfile.ZipFile(path) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE.txt")]
            assert archive.read(name) == b"the text"


# Some artifacts only


def test_wheel_with_some_artifacts_only_does_not_replace_the_whole_one(tiny_built: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_built)
    paths = {pack(manifest, tmp_path, only=only) for only in ([], ["onnx-fp32"], ["onnx-int8-avx2"])}
    assert {*tmp_path.iterdir()} == paths
    assert len(paths) == 3
    everything = [artifact.id for artifact in manifest.artifacts]
    assert pack(manifest, tmp_path, only=everything) in paths


def test_wheel_with_some_artifacts_only_is_a_bundle_of_these(tiny_built: Path, tmp_path: Path) -> None:
    path = pack(Manifest.read(tiny_built), tmp_path, only=["onnx-int8-avx2", "onnx-fp32"])
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    root = tmp_path / "unpacked" / f"{BUNDLE}-onnx-fp32-onnx-int8-avx2"
    manifest = Manifest.read(root)
    assert [artifact.id for artifact in manifest.artifacts] == ["onnx-fp32", "onnx-int8-avx2"]
    files = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}
    assert files == {"firstvec.json", *(file.path for file in manifest.files())}
    assert not (root / "torchscript").exists()
    provider = OptimizedEmbeddingLoader(str(root)).get_provider()
    expected = OptimizedEmbeddingLoader(str(tiny_built), artifact="onnx-fp32").get_provider()
    assert np.array_equal(provider.embed_query("some text"), expected.embed_query("some text"))


@pytest.fixture
def keys(tmp_path: Path) -> Pair:
    return make_keys(tmp_path / "keys")


def test_signature_is_packed_and_is_valid_where_the_wheel_is_installed(
    tiny_bundle: Path, keys: Pair, tmp_path: Path
) -> None:
    sign(Manifest.read(tiny_bundle), keys.private)
    path = pack(Manifest.read(tiny_bundle), tmp_path)
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", path)
    root = tmp_path / "site" / BUNDLE
    assert find_bundle(str(root), str(keys.public)).root == str(root)
    assert peer_accepts(root, keys.public)
    with zipfile.ZipFile(path) as archive:
        [record] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/RECORD")]
    assert f"{BUNDLE}/{SIGNATURE},sha256=" in record


def test_the_manifest_that_was_signed_is_packed_as_it_is(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    path = tiny_bundle / "firstvec.json"
    edit_manifest(tiny_bundle, lambda document: document.update(format_version="1.7", later="ignored"))
    sign(Manifest.read(tiny_bundle), keys.private)
    with zipfile.ZipFile(pack(Manifest.read(tiny_bundle), tmp_path)) as archive:
        assert archive.read(f"{BUNDLE}/firstvec.json") == path.read_bytes()
        assert archive.read(f"{BUNDLE}/{SIGNATURE}") == (tiny_bundle / SIGNATURE).read_bytes()


def test_wheel_with_some_artifacts_only_leaves_the_signature_out(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    sign(manifest, keys.private)
    everything = [artifact.id for artifact in manifest.artifacts]
    for only, is_signed in ((["onnx-fp32"], False), (everything, True), ([], True)):
        with zipfile.ZipFile(pack(manifest, tmp_path, only=only)) as archive:
            assert (f"{BUNDLE}/{SIGNATURE}" in archive.namelist()) == is_signed


def test_wheel_with_some_artifacts_only_keeps_keys_that_this_firstvec_does_not_know(
    tiny_bundle: Path, tmp_path: Path, firstvec: Fresh
) -> None:
    def add_keys(document: dict[str, Any]) -> None:
        document.update(format_version="1.7", later={"any": ["value"]})
        document["model"]["later"] = 1
        for artifact in document["artifacts"]:
            artifact["later"] = f"of {artifact['id']}"
            artifact["quality"]["later"] = 0.5

    edit_manifest(tiny_bundle, add_keys)
    before = json.loads((tiny_bundle / "firstvec.json").read_text("utf-8"))
    done = firstvec("wheel", "--model", tiny_bundle, "-o", tmp_path, "--only", "onnx-fp32", "--json")
    with zipfile.ZipFile(json.loads(done.stdout)["wheel"]) as archive:
        data = archive.read(f"{BUNDLE}-onnx-fp32/firstvec.json")
    after = json.loads(data)
    assert [artifact["id"] for artifact in after["artifacts"]] == ["onnx-fp32"]
    assert after["artifacts"] == [artifact for artifact in before["artifacts"] if artifact["id"] == "onnx-fp32"]
    assert len(after.pop("checksum")) == 8
    assert after == before | {"artifacts": after["artifacts"]}
    assert [artifact.id for artifact in Manifest.parse(data).artifacts] == ["onnx-fp32"]


@pytest.mark.parametrize("only", [[], ["onnx-fp32"]])
def test_manifest_that_was_changed_since_it_was_read_is_not_packed(
    only: list[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(tiny_bundle)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    with pytest.raises(ManifestError, match="was changed since it was read"):
        pack(manifest, tmp_path / "wheels", only=only)
    assert not (tmp_path / "wheels").exists()


def test_signature_of_other_files_is_not_packed(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    forge(tiny_bundle, keys.private, without=("config.json",))
    with pytest.raises(BuildError, match="covers other files than the bundle has"):
        pack(manifest, tmp_path / "wheels")
    (tiny_bundle / "notes.txt").write_text("signed, and not listed")
    sign_with_peer(tiny_bundle, keys.private)
    with pytest.raises(BuildError, match="covers other files than the bundle has"):
        pack(manifest, tmp_path / "wheels")
    (tiny_bundle / SIGNATURE).write_text("{}")
    with pytest.raises(SignatureError):
        pack(manifest, tmp_path / "wheels")
    assert not (tmp_path / "wheels").exists()


def test_artifact_that_the_bundle_lacks_is_refused(tiny_built: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no artifact 'onnx-int4': it has torchscript-fp32, onnx-fp32"):
        pack(Manifest.read(tiny_built), tmp_path / "wheels", only=["onnx-fp32", "onnx-int4"])
    assert not (tmp_path / "wheels").exists()


def test_damaged_bundle_is_not_packed(tiny_bundle: Path, tmp_path: Path) -> None:
    pack(
        Manifest.read(tiny_bundle), tmp_path / "before"
    )  # a marker now says that the files were verified, and counts for nothing
    path = tiny_bundle / "onnx" / "model.onnx_data"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IntegrityError, match=r"model\.onnx_data is not the file that was built"):
        pack(Manifest.read(tiny_bundle), tmp_path / "wheels")
    assert not list((tmp_path / "wheels").iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_wheel_that_cannot_be_written_leaves_the_previous_one(
    call: str, code: int, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = pack(Manifest.read(tiny_bundle), tmp_path / "wheels")
    before = wheel.read_bytes()

    def failing(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(BuildError, match=f"cannot be written .{os.strerror(code)}"):
        pack(Manifest.read(tiny_bundle), tmp_path / "wheels", only=["onnx-fp32"])
    assert list((tmp_path / "wheels").iterdir()) == [wheel]
    assert wheel.read_bytes() == before


def link_symbolically(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def link_hard(path: Path, elsewhere: Path) -> None:
    elsewhere.hardlink_to(path)


@pytest.mark.parametrize("link", [link_symbolically, link_hard])
@pytest.mark.parametrize("name", ["tokenizer.json", "onnx/model.onnx_data"])
def test_link_is_not_packed(link: Callable[[Path, Path], None], name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    link(tiny_bundle / name, tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=f"{name} .*link"):
        pack(Manifest.read(tiny_bundle), tmp_path / "wheels")
    assert not list((tmp_path / "wheels").iterdir())


def test_bundle_that_is_replaced_while_it_is_packed_does_not_become_a_mixture(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstvec.bundle.integrity import OpenFile

    read = OpenFile.read

    def replaced(self: OpenFile) -> bytes:
        if self.relative_path == "tokenizer.json":  # the file is verified by now
            (tiny_bundle / self.relative_path).write_bytes(b"of another bundle")
        return read(self)

    monkeypatch.setattr(OpenFile, "read", replaced)
    with pytest.raises(IntegrityError, match=r"tokenizer\.json is not the file that was built"):
        pack(Manifest.read(tiny_bundle), tmp_path / "wheels")
    assert not list((tmp_path / "wheels").iterdir())


def test_wheel_of_an_incomplete_bundle_leaves_the_previous_one(tiny_bundle: Path, tmp_path: Path) -> None:
    wheel = pack(Manifest.read(tiny_bundle), tmp_path / "wheels")
    before = wheel.read_bytes()
    (tiny_bundle / "tokenizer.json").unlink()
    with pytest.raises(IntegrityError):
        pack(Manifest.read(tiny_bundle), tmp_path / "wheels")
    assert list((tmp_path / "wheels").iterdir()) == [wheel]
    assert wheel.read_bytes() == before


def test_unwritable_output_is_a_build_error(tiny_built: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for output in (tmp_path / "file", tmp_path / "file" / "wheels"):
        with pytest.raises(BuildError, match=r"cannot be written .*choose another --output"):
            pack(Manifest.read(tiny_built), output)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("revision", ["1110a243fdf4706b3f48f1d95db1a4f5529b4d41", "release/v2", "my-branch", "v1_0 b"])
def test_wheel_of_any_revision_can_be_installed(revision: str, tiny_bundle: Path, tmp_path: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision=revision))
    path = pack(Manifest.read(tiny_bundle), tmp_path, only=["onnx-fp32"])
    assert path.parent == tmp_path
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", path)
    assert Manifest.read(tmp_path / "site" / f"{BUNDLE}-onnx-fp32").model.revision == revision


@pytest.mark.parametrize("name", ["org/My-Model.v1.5", "my model, final", "模型"])
def test_wheel_of_any_name_can_be_installed(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(name=name))
    path = pack(Manifest.read(tiny_bundle), tmp_path, only=["onnx-fp32"])
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", path)
    [root] = (tmp_path / "site" / "firstvec_bundles").iterdir()
    assert Manifest.read(root).model.name == name
    assert OptimizedEmbeddingLoader(str(root)).get_provider().embed_query("some text").shape == (32,)
