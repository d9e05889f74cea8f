"""The commands `firstvec push` and `firstvec pull`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping.signing import sign
from tests.conftest import Fresh
from tests.keys import Pair, make_keys
from tests.registries import IS_MISSING, PASSWORD, USER, docker_registry, liar_with


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("keys"))


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


def test_a_password_that_is_no_text_is_refused(firstvec: Fresh) -> None:
    command = ("pull", "oci://127.0.0.1:9/tiny:1", "--username", "ada", "--password-stdin")
    done = firstvec(*command, stdin=b"\xff\n", PYTHONIOENCODING="utf-8:strict", **LOOPBACK)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: the password on stdin is not UTF-8; write it as text\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--strategy", "fastest"), "fastest"),
        (("--strategy", "lazy", "--only", "onnx-fp32"), "leave --only or --strategy out"),
        (("--require-signature", "no.pub"), "no.pub: does not exist"),
        (("--output", "/dev/null/x"), "cannot be written"),
    ],
)
def test_what_is_wrong_here_is_said_before_the_place_is_asked(
    options: tuple[str, ...], message: str, firstvec: Fresh
) -> None:
    done = firstvec("pull", "oci://127.0.0.1:9/tiny:1", "--insecure", *options, **LOOPBACK)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert "cannot be reached" not in done.stderr


@pytest.mark.parametrize(("name", "value"), [("HF_ENDPOINT", "http://[x"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")])
def test_a_wrong_variable_of_the_hubs_client_is_named(name: str, value: str, firstvec: Fresh) -> None:
    done = firstvec("pull", "hf://org/name", **{name: value}, **LOOPBACK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "HF_ENDPOINT" in done.stderr
    assert "Traceback" not in done.stderr
