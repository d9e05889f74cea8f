"""The command `firstvec build`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping.signing import sign
from tests.build.conftest import INT8_HERE
from tests.conftest import Fresh
from tests.keys import Pair, make_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("keys"))


def test_build_writes_where_the_runtime_looks_and_prints_json(
    tiny_model: Path, firstvec: Fresh, tmp_path: Path
) -> None:
    home = {"FIRSTVEC_HOME": str(tmp_path / "home"), "FIRSTVEC_ARTIFACTS": ""}
    # A random model of 32 components has many near neighbours.
    command = ("build", tiny_model, "--only", "onnx-fp32", "--only", INT8_HERE, "--min-neighbour-overlap", "0.8")
    command = (*command, "--license", "cc-by-nc-4.0")
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

    assert "licence         CC-BY-NC-4.0\n" in firstvec("inspect", "tiny-bert", **home).stdout
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
        (["{model}", "--license", "free"], "the licence 'free' is no SPDX expression"),
    ],
    ids=["folder", "output", "no output", "only", "sha256", "sts", "corpus", "threshold", "licence"],
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
