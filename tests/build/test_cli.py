"""The commands of the toolchain: `firstvec build`, `wheel`, `sign` and `sbom`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping.sbom import make_sbom
from firstvec_build.shipping.signing import sign
from tests.build.conftest import INT8_HERE
from tests.conftest import Fresh
from tests.keys import SIGNATURE, Pair, make_keys, peer_accepts


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("keys"))


def test_build_writes_where_the_runtime_looks_and_prints_json(
    tiny_model: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    home = {"FIRSTVEC_HOME": str(tmp_path / "home"), "FIRSTVEC_ARTIFACTS": ""}
    # A random model of 32 components has many near neighbours.
    command = ("build", tiny_model, "--only", "onnx-fp32", "--only", INT8_HERE, "--min-neighbour-overlap", "0.8")
    done = firstvec(*command, "--json", **home)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    keys = {"path", "model", "rebuilt", "signature_lost", "replaced_sha256", "left_out", "seconds", "artifacts"}
    assert set(result) == keys
    assert (result["replaced_sha256"], result["left_out"]) == (None, {})
    assert result["path"] == str(tmp_path / "home" / "bundles" / "tiny-bert")
    assert (result["model"], result["rebuilt"], result["signature_lost"]) == ("tiny-bert", True, False)
    assert [artifact["id"] for artifact in result["artifacts"]] == ["onnx-fp32", INT8_HERE]
    for artifact in result["artifacts"]:
        assert artifact["size"] == sum(file["size"] for file in artifact["files"])
        assert artifact["quality"]["cosine_min"] > 0.9
        assert 0 < artifact["load_ms"] < artifact["first_vector_ms"]

    encoded = firstvec("encode", "--model", "tiny-bert", "some text", **home)
    assert len(json.loads(encoded.stdout)["vectors"][0]) == 32

    again = json.loads(firstvec(*command, "--json", **home).stdout)
    assert again["rebuilt"] is False
    assert {artifact["load_ms"] for artifact in again["artifacts"]} == {None}
    quiet = firstvec(*command, "--quiet", **home)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    table = firstvec(*command, **home)
    assert "Nothing changed" in table.stdout
    assert "fp32" in table.stdout
    assert "int8" in table.stdout


def test_build_shows_its_stages_and_the_table_and_that_a_signature_is_lost(
    tiny_model: Path, keys: Pair, firstvec: Fresh, tmp_path: Path
) -> None:
    command = ("build", tiny_model, "--output", tmp_path, "--only", "onnx-fp32")
    first = firstvec(*command)
    assert first.stdout.startswith(f"Built {tmp_path / 'tiny-bert'} in ")
    assert "first vector ms" in first.stdout
    assert "signed" not in first.stdout
    stages = [line.split(" s  ")[1] for line in first.stderr.splitlines() if " s  " in line]
    assert stages[0] == "fetching the model"
    assert stages[-3:] == ["building onnx-fp32", "writing the bundle", "timing fresh processes"]
    sign(Manifest.read(tmp_path / "tiny-bert"), keys.private)
    assert "The previous bundle was signed." in firstvec(*command, "--force").stdout


def test_build_shows_what_it_left_out(tiny_model: Path, firstvec: Fresh, tmp_path: Path) -> None:
    command = ("build", tiny_model, "--output", tmp_path, "--min-cosine-mean", "1.0")
    done = firstvec(*command)
    assert done.returncode == 0
    assert re.search(
        rf"^  {INT8_HERE} +left out: cosine_mean is 0.99\d+, must be at least 1$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^  onnx-fp32 +fp32 +any", done.stdout, re.MULTILINE)
    strict = firstvec(*command, "--strict")
    assert (strict.returncode, strict.stdout) == (1, "")
    assert "native-int8: cosine_mean is 0.99" in strict.stderr


def test_quiet_build_prints_nothing(tiny_model: Path, firstvec: Fresh, tmp_path: Path) -> None:
    done = firstvec("build", tiny_model, "--output", tmp_path, "--only", "onnx-fp32", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Manifest.read(tmp_path / "tiny-bert").model.name == "tiny-bert"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/no-such-model"], "no-such-model: there is no such folder"),
        (["{model}", "--output", "{tmp}/file/bundles"], "cannot be written; choose another folder with --output"),
        (["{model}", "--output", ""], "--output is empty: give a path"),
        (["{model}", "--only", "onnx-int4"], "unknown artifact 'onnx-int4'"),
        (["{model}", "--sha256", "0" * 64], "the weights are not the pinned ones"),
        (["{model}", "--sts", "{tmp}/missing.tsv"], "missing.tsv: cannot be read"),
        (["{model}", "--corpus", "{tmp}/corpus.txt"], "corpus.txt:2: is empty; a corpus holds one text a line"),
        (["{model}", "--only", INT8_HERE, "--min-cosine", "1.0"], f"{INT8_HERE}: cosine_min is 0.9"),
    ],
    ids=["folder", "output", "no output", "only", "sha256", "sts", "corpus", "threshold"],
)
def test_build_ends_with_one_message(
    arguments: list[str], message: str, tiny_model: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "corpus.txt").write_text("one\n\nthree\n", "utf-8")
    done = firstvec("build", *(argument.format(tmp=tmp_path, model=tiny_model) for argument in arguments))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "home").glob("**/tiny-bert"))


WITHOUT_HOME = """
import os, sys
for name in ("HOME", "FIRSTVEC_HOME", "XDG_DATA_HOME"):
    os.environ.pop(name, None)
os.path.expanduser = lambda path: path  # as for a user that the user database does not know
from firstvec.commands.main import main
main(["build", *sys.argv[1:]])
"""


def test_build_for_a_user_without_a_home_asks_for_an_output(tiny_model: Path, tmp_path: Path, fresh: Fresh) -> None:
    done = fresh(WITHOUT_HOME, tiny_model, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: this user has no home folder: give --output FOLDER, or set FIRSTVEC_HOME\n"
    fresh(WITHOUT_HOME, tiny_model, "--output", tmp_path, "--only", "onnx-fp32", "--quiet")
    assert Manifest.read(tmp_path / "tiny-bert").model.name == "tiny-bert"


@pytest.mark.parametrize("command", [("wheel",), ("sign", "--private-key", "KEY"), ("sbom",)])
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
    done = fresh(WITHOUT_A_PACKAGE, package, *filled, "--model", tiny_bundle, check=False)
    assert done.returncode == 1
    assert f"pip install 'firstvec[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "wheels").exists()
