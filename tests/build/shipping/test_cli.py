"""The commands for a bundle that was built: `firstvec wheel`, `sign`, `sbom`, `export`, `push` and `pull`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping.sbom import make_sbom
from firstvec_build.shipping.signing import sign
from tests.conftest import Fresh, edit_manifest
from tests.keys import SIGNATURE, Pair, make_keys, peer_accepts
from tests.registries import IS_MISSING, PASSWORD, USER, docker_registry, liar_with


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize(
    "command", [("wheel",), ("sign", "--private-key", "KEY"), ("sbom",), ("export", "--ort-package", "DIR")]
)
def test_shipping_commands_demand_a_bundle(command: tuple[str, ...], firstvec: Fresh) -> None:
    missing = firstvec(*command)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "MODEL is missing" in missing.stderr
    twice = firstvec(*command, "one", "--model", "another")
    assert (twice.returncode, twice.stdout) == (1, "")
    assert "MODEL is given twice, as 'one' and as 'another'" in twice.stderr


def test_wheel_packs_a_bundle(tiny_built: Path, firstvec: Fresh, tmp_path: Path) -> None:
    done = firstvec("wheel", "-m", tiny_built, "--output", tmp_path / "dist", "--only", "onnx-fp32", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["size"] == Path(result["wheel"]).stat().st_size > 10_000
    assert Path(result["wheel"]).parent == tmp_path / "dist"
    assert result["signed"] is False


def test_wheel_writes_parts_and_says_what_replaces_other_bytes(
    tiny_bundle: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    command = ("wheel", tiny_bundle, "-o", tmp_path / "dist", "--split", "--only", "native-int8", "--version", "1.0")
    result = json.loads(firstvec(*command, "--json").stdout)
    names = [f"firstvec_bundle_tiny_bert_{part}-1.0-py3-none-any.whl" for part in ("base", "part_native_int8")]
    assert [Path(each["wheel"]).name for each in result["wheels"]] == names
    assert [each["size"] for each in result["wheels"]] == [(tmp_path / "dist" / name).stat().st_size for name in names]
    assert [each["replaced"] for each in result["wheels"]] == [False, False]
    assert "replaces a wheel" not in firstvec(*command).stdout
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    text = firstvec(*command).stdout
    assert f"{names[0]} replaces a wheel of the same version and of other bytes" in text
    assert "above 100 MB" not in text


WITH_A_LOW_LIMIT = """
import sys
from firstvec_build.shipping import wheel
wheel.USUAL_LIMIT = 200_000
from firstvec.commands.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("options", "advice"),
    [((), "pack less with --only, or write several with --split"), (("--split",), "ask the index for more")],
)
def test_wheel_says_which_wheel_is_above_the_usual_limit(
    options: tuple[str, ...], advice: str, tiny_bundle: Path, fresh: Fresh, tmp_path: Path
) -> None:
    (tiny_bundle / "config.json").write_bytes(os.urandom(300_000))
    edit_manifest(tiny_bundle, lambda document: describe_again(document, tiny_bundle / "config.json"))
    text = fresh(WITH_A_LOW_LIMIT, "wheel", tiny_bundle, "-o", tmp_path, *options).stdout
    assert re.search(
        rf"^firstvec_bundle_\S+ is above 0 MB, which is the limit of many .*: {advice}", text, re.MULTILINE
    )


def describe_again(document: dict[str, Any], path: Path) -> None:
    """Let the manifest describe a support file as it is."""
    [entry] = [each for each in document["support_files"] if each["path"] == path.name]
    entry.update(size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_wheel_asks_for_a_licence_that_the_bundle_does_not_state(
    tiny_bundle: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].pop("license"))
    command = ("wheel", tiny_bundle, "-o", tmp_path / "dist", "--only", "onnx-fp32")
    done = firstvec(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert "give it, such as --license Apache-2.0" in done.stderr
    assert firstvec(*command, "--license", "apache-2.0").returncode == 0


def test_wheel_says_whether_the_signature_is_packed(
    tiny_bundle: Path, keys: Pair, tmp_path: Path, firstvec: Fresh
) -> None:
    sign(Manifest.read(tiny_bundle), keys.private)
    some = ("wheel", "--model", tiny_bundle, "-o", tmp_path / "some", "--only", "onnx-fp32")
    assert "The wheel has no signature" in firstvec(*some).stdout
    assert json.loads(firstvec(*some, "--json").stdout)["signed"] is False
    everything = ("wheel", "--model", tiny_bundle, "-o", tmp_path / "all")
    assert ", signed)" in firstvec(*everything).stdout
    names = [argument for artifact in Manifest.read(tiny_bundle).artifacts for argument in ("--only", artifact.id)]
    assert json.loads(firstvec(*everything, *names, "--json").stdout)["signed"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-bundle"], "no bundle for model 'no-such-bundle' was found"),
        (["{bundle}", "--only", "onnx-int4"], "the bundle has no artifact 'onnx-int4'"),
        (["{bundle}", "--output", "{tmp}/file"], "cannot be written"),
        (["{bundle}", "--output", ""], "--output is empty: give a path"),
        (["{bundle}", "--version", "1+r1110"], "has a local part, which a package index refuses"),
        (["{bundle}", "--version", "latest", "--split"], "the version 'latest' is no version of a package"),
        (["{bundle}", "--license", "Apache-2.0"], "the bundle states the licence MIT, not Apache-2.0"),
    ],
)
def test_wheel_ends_with_one_message(
    arguments: list[str], message: str, tiny_built: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = firstvec("wheel", "--model", *(argument.format(bundle=tiny_built, tmp=tmp_path) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_sign_writes_the_signature_and_prints_its_path(
    tiny_bundle: Path, keys: Pair, tmp_path: Path, firstvec: Fresh
) -> None:
    command = ("sign", "--model", tiny_bundle, "--private-key")
    done = firstvec(*command, keys.private)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(tiny_bundle / SIGNATURE))
    values = json.loads(firstvec(*command, keys.private, "--json").stdout)
    assert values["signature"] == str(tiny_bundle / SIGNATURE)
    assert "firstvec.json" in values["files"]
    locked = make_keys(tmp_path / "keys", password="sesame")
    assert firstvec(*command, locked.private).returncode == 1
    assert firstvec(*command, locked.private, FIRSTVEC_KEY_PASSWORD="sesame").returncode == 0
    verified = firstvec("verify", "--model", tiny_bundle, "--strict", "--public-key", locked.public)
    assert verified.returncode == 0


def test_sign_ends_with_one_message(tiny_bundle: Path, keys: Pair, firstvec: Fresh) -> None:
    (tiny_bundle / "config.json").write_text("{}")
    for bundle, key, message in (
        (tiny_bundle, keys.private, "config.json is not the file that was built"),
        (tiny_bundle, keys.public, "is not a private key"),
        (tiny_bundle, "", "--private-key is empty"),
        ("no/such", keys.private, "no/such"),
    ):
        done = firstvec("sign", "--model", bundle, "--private-key", key)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_sign_reads_a_key_from_a_pipe(tiny_bundle: Path, keys: Pair) -> None:
    command = str(Path(sys.executable).with_name("firstvec"))
    script = '"$0" sign -m "$1" --private-key <(cat "$2")'
    done = subprocess.run(
        ["bash", "-c", script, command, tiny_bundle, keys.private], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert peer_accepts(tiny_bundle, keys.public)


def test_sbom_is_written_to_stdout_or_a_file(tiny_built: Path, tmp_path: Path, firstvec: Fresh) -> None:
    expected = make_sbom(Manifest.read(tiny_built), (tiny_built / "firstvec.json").read_bytes())
    done = firstvec("sbom", "--model", tiny_built)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.encode() == expected
    target = tmp_path / "bundle.cdx.json"
    done = firstvec("sbom", "--model", tiny_built, "-o", target)
    assert (done.returncode, done.stdout) == (0, "")
    assert target.read_bytes() == expected


def test_sbom_ends_with_one_message(tiny_bundle: Path, firstvec: Fresh) -> None:
    assert "--output" in firstvec("sbom", "--model", tiny_bundle, "-o", "/nonexistent/x").stderr
    (tiny_bundle / "config.json").write_text("{}")
    done = firstvec("sbom", "--model", tiny_bundle)
    assert (done.returncode, done.stdout) == (1, "")
    assert "config.json is not the file that was built" in done.stderr
    assert "Traceback" not in done.stderr


WITHOUT_A_PACKAGE = """
import sys
sys.modules[sys.argv[1]] = None
from firstvec.commands.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("model_signing", ("sign", "--private-key", "{key}"), "sign"),
        ("OpenSSL", ("sign", "--private-key", "{key}"), "sign"),
        ("cyclonedx", ("sbom",), "sbom"),
        ("cyclonedx", ("wheel", "-o", "{wheels}"), "sbom"),
        ("oras", ("push", "oci://127.0.0.1:9/tiny:1"), "ship"),
    ],
)
def test_command_without_its_extra_says_how_to_install_it(
    package: str,
    arguments: tuple[str, ...],
    extra: str,
    tiny_bundle: Path,
    keys: Pair,
    fresh: Fresh,
    tmp_path: Path,
) -> None:
    filled = [argument.format(key=keys.private, wheels=tmp_path / "wheels") for argument in arguments]
    place = (tiny_bundle, *filled[1:]) if arguments[0] == "push" else (*filled[1:], "--model", tiny_bundle)
    done = fresh(WITHOUT_A_PACKAGE, package, filled[0], *place, check=False)
    assert done.returncode == 1
    assert f"pip install 'firstvec[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "wheels").exists()


def test_export_writes_a_model_package(tiny_built: Path, firstvec: Fresh, tmp_path: Path) -> None:
    done = firstvec("export", tiny_built, "--ort-package", tmp_path / "all")
    assert (done.returncode, done.stderr) == (0, "")
    assert "onnx-fp32: any processor\n  onnx-int8-avx2: processors with avx2\n" in done.stdout
    assert "Ship this package" not in done.stdout
    one = ("export", "--model", tiny_built, "--ort-package", tmp_path / "one", "--only", "onnx-int8-avx2")
    assert "onnxruntime takes onnx-int8-avx2 on every processor" in firstvec(*one).stdout
    assert json.loads(firstvec(*one, "--json").stdout) == {
        "ort_package": str(tmp_path / "one"),
        "size": sum(path.stat().st_size for path in (tmp_path / "one").rglob("*") if path.is_file()),
        "component": "model",
        "variants": [{"name": "onnx-int8-avx2", "isa": "avx2"}],
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-bundle", "--ort-package", "{tmp}/new"], 1, "no bundle for model 'no-such-bundle' was found"),
        (["{bundle}"], 2, "Missing option '--ort-package'"),
        (["{bundle}", "--ort-package", ""], 1, "--ort-package is empty: give a path"),
        (["{bundle}", "--ort-package", "{bundle}"], 1, "is no model package of firstvec, so it is not replaced"),
        (["{bundle}", "--ort-package", "{tmp}/new", "--only", "torchscript-fp32"], 1, "is no ONNX artifact"),
    ],
)
def test_export_ends_with_one_message(
    arguments: list[str], code: int, message: str, tiny_built: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    done = firstvec("export", *(argument.format(bundle=tiny_built, tmp=tmp_path) for argument in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


LOOPBACK = {"NO_PROXY": "127.0.0.1,localhost", "HOME": "/nonexistent"}


def test_push_takes_a_bundle_with_and_without_its_option(tiny_built: Path, firstvec: Fresh) -> None:
    place = "oci://127.0.0.1:9/tiny:1"
    for given in ((tiny_built, place), ("-m", tiny_built, place), (tiny_built, place, "--model", tiny_built)):
        assert "127.0.0.1:9 cannot be reached" in firstvec("push", *given, "--insecure", **LOOPBACK).stderr
    twice = firstvec("push", "one", place, "-m", "two")
    assert twice.stderr == "error: MODEL is given twice, as 'one' and as 'two': give one of them\n"
    for arguments, what in (((), "MODEL"), ((tiny_built,), "ADDRESS"), (("-m", tiny_built), "ADDRESS")):
        missing = firstvec("push", *arguments)
        assert (missing.returncode, missing.stdout) == (2, "")
        assert f"{what} is missing" in missing.stderr


@pytest.mark.skipif(bool(IS_MISSING), reason=IS_MISSING)
def test_push_and_pull_print_what_they_did(tiny_bundle: Path, keys: Pair, tmp_path: Path, firstvec: Fresh) -> None:
    sign(Manifest.read(tiny_bundle), keys.private)
    with docker_registry(tmp_path, tls=True, password=True) as server:
        access = ("--ca", server.authority, "--username", USER)
        secret = {"FIRSTVEC_REGISTRY_PASSWORD": PASSWORD}
        address = f"oci://{server.host}/models/tiny:1"
        done = firstvec("push", tiny_bundle, address, *access, **LOOPBACK, **secret)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"oci://{server.host}/models/tiny@sha256:")
        assert done.stdout.endswith(", signed)\n")
        pushed = json.loads(firstvec("push", tiny_bundle, address, *access, "--json", **LOOPBACK, **secret).stdout)
        assert (pushed["sent"], pushed["signed"], pushed["model"]) == (0, True, "tiny-bert")
        pull = ("pull", pushed["address"], *access, "--require-signature", keys.public)
        # The default place is the user's data folder, and the password may come from stdin.
        done = firstvec(*pull, "--password-stdin", **LOOPBACK, stdin=f"{PASSWORD}\n")
        assert (done.returncode, done.stderr) == (0, "")
        root = tmp_path / "home" / "bundles" / "tiny-bert"
        assert done.stdout.splitlines()[0].startswith(f"{root}  (")
        assert f"The signature is one of the key {keys.public}." in done.stdout
        assert "(up to date)" in firstvec(*pull, **LOOPBACK, **secret).stdout
        some = firstvec(*pull, "--only", "onnx-fp32", **LOOPBACK, **secret).stdout
        assert "(0.0 MB fetched, " in some
        assert "It replaced the bundle that was there." in some
        assert "The signature was left out, because it covers all artifacts" in some
        values = json.loads(
            firstvec(*pull, "--strategy", "cached", "-o", tmp_path / "one", "--json", **LOOPBACK, **secret).stdout
        )
        assert (values["new"], values["replaced"], values["signed"]) == (True, False, False)
        assert len(values["artifacts"]) == 1
        assert values["fetched"] > 0
        assert values["address"] == pushed["address"]
        assert values["path"] == str(tmp_path / "one" / "tiny-bert")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("push", "{bundle}", "registry/tiny:1"), "is not an address; write oci://HOST/REPO:TAG"),
        (("push", "{bundle}", "oci://{host}/tiny"), "names no version; write a tag or a digest"),
        (("push", "{bundle}", "oci://{host}/Tiny:1"), "'Tiny' is not a repository"),
        (("push", "no-such-bundle", "oci://{host}/tiny:1"), "no bundle for model 'no-such-bundle' was found"),
        (("push", "{bundle}", "oci://{host}/tiny:1", "--private"), "--private is for hf:// only"),
        (("pull", "oci://{host}/tiny:1", "--only", "onnx-int4", "--insecure"), "has no artifact 'onnx-int4'"),
        (("pull", "oci://{host}/tiny:1", "--output", ""), "--output is empty: give a path"),
        (("pull", "oci://{host}/tiny:1", "--ca", ""), "--ca is empty: give a path"),
        (("pull", "oci://{host}/tiny:1", "--ca", "x", "--insecure"), "both --ca and --insecure are given"),
        (("pull", "oci://{host}/tiny:1", "--username", "ada"), "set FIRSTVEC_REGISTRY_PASSWORD"),
        (("pull", "oci://{host}/tiny:1", "--password-stdin"), "--password-stdin needs --username"),
        (("pull", "oci://{host}/tiny:1"), "--insecure for a registry without TLS"),
        (("pull", "oci://{host}/tiny:1", "--insecure", "--require-signature", "no.pub"), "no.pub: does not exist"),
        (("pull", "oci://127.0.0.1:9/tiny:1", "--insecure"), "127.0.0.1:9 cannot be reached (Connection refused)"),
        (("pull", "oci://{host}/tiny:1", "--insecure", "-o", "{bundle}/config.json"), "cannot be written"),
    ],
)
def test_push_and_pull_end_with_one_message(
    arguments: tuple[str, ...], message: str, tiny_built: Path, tmp_path: Path, firstvec: Fresh
) -> None:
    with liar_with(tiny_built) as registry:
        filled = [each.format(bundle=tiny_built, host=registry.host) for each in arguments]
        done = firstvec(*filled, **LOOPBACK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 or "Searched" in done.stderr
    assert message in done.stderr
    assert not (tmp_path / "home" / "bundles").exists()
