"""What a shell offers after Tab: the protocol of typer in fresh processes, and bash itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from firstvec.commands.completion import artifact_ids, bundle_names
from firstvec.commands.table import COMMANDS
from tests.conftest import Fresh, edit_manifest
from tests.runtime.commands.conftest import PROGRAM, Shell


@pytest.fixture
def bundles(tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two bundles, of which one has an organization, and of a broken one."""
    root = tmp_path / "bundles"
    shutil.copytree(tiny_built, root / "tiny-bert")
    shutil.copytree(tiny_built, root / "other")
    edit_manifest(root / "other", lambda document: document["model"].update(name="organization/other"))
    (root / "broken").mkdir()
    (root / "broken" / "firstvec.json").write_text("{")
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(root))
    return root


def complete(firstvec: Fresh, line: str, shell: str = "bash") -> list[str]:
    """What the command offers for the last word of a line."""
    words = line.split(" ")
    environment = {"_FIRSTVEC_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        environment |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        environment |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = firstvec(**environment)
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout).split() if shell != "zsh" else [str(done.stdout)]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("firstvec expl", ["explain"]),
        ("firstvec s", ["similar", "sign", "sbom"]),
        ("firstvec encode --model ", ["other", "tiny-bert"]),
        ("firstvec encode -m ti", ["tiny-bert"]),
        ("firstvec similar query --model org", ["organization/other"]),
        ("firstvec explain ", ["other", "tiny-bert"]),
        ("firstvec explain --json o", ["other"]),
        ("firstvec wheel t", ["tiny-bert"]),
        ("firstvec sign --model t", ["tiny-bert"]),
        ("firstvec verify no-such-", []),
        ("firstvec verify ./ti", []),
        ("firstvec explain --strategy ", ["lazy", "background", "progressive", "quantized", "cached"]),
        ("firstvec encode -f js", ["json", "jsonl"]),
        ("firstvec encode --model tiny-bert --artifact onnx-f", ["onnx-fp32"]),
        ("firstvec explain tiny-bert --artifact onnx-f", ["onnx-fp32"]),
        ("firstvec explain tiny-bert --json --artifact onnx-f", ["onnx-fp32"]),
        ("firstvec explain no-such-model --artifact ", []),
        ("firstvec encode tiny-bert --artifact ", []),  # a text, and no bundle
        ("firstvec encode --artifact ", []),  # the default bundle is not there
        ("firstvec similar --to", ["--top"]),
        ("firstvec similar query ", []),  # the shell then offers files
        ("firstvec build ti", []),
        ("firstvec push ti", ["tiny-bert"]),
    ],
)
def test_the_words_that_fit_are_offered(line: str, offered: list[str], bundles: Path, firstvec: Fresh) -> None:
    assert complete(firstvec, line) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_own_form(shell: str, bundles: Path, firstvec: Fresh) -> None:
    offered = complete(firstvec, "firstvec explain ti", shell)
    assert offered == ["tiny-bert"] if shell == "fish" else '"tiny-bert"' in offered[0]


def test_every_command_is_offered(bundles: Path, firstvec: Fresh) -> None:
    assert {*COMMANDS, "build", "export", "pull", "push", "sbom", "sign", "wheel"} == {*complete(firstvec, "firstvec ")}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str, firstvec: Fresh) -> None:
    done = firstvec("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_FIRSTVEC_COMPLETE=complete_{shell}" in done.stdout


def test_bash_completes_with_the_installed_script(bundles: Path, shell: Shell, firstvec: Fresh, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = firstvec("--install-completion", "bash", **home)
    assert done.returncode == 0
    assert "bash completion installed in" in done.stdout
    script = next((tmp_path / ".bash_completions").iterdir())
    assert str(script) in (tmp_path / ".bashrc").read_text()
    done = shell(
        f'source {script}; complete -p firstvec; COMP_WORDS=(firstvec explain ""); COMP_CWORD=2; '
        f'_firstvec_completion {PROGRAM}; echo "${{COMPREPLY[@]}}"'
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["complete -o default -F _firstvec_completion firstvec", "other tiny-bert"]


def test_a_completion_imports_nothing_large(bundles: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec.commands.main import main
try:
    main([])
finally:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""
    environment = {"_FIRSTVEC_COMPLETE": "complete_bash", "COMP_WORDS": "firstvec explain ", "COMP_CWORD": "2"}
    done = fresh(code, check=False, **environment)
    assert (done.returncode, done.stdout) == (0, "other\ntiny-bert\n")
    assert "typer" in done.stderr.split()
    assert not {*done.stderr.split()} & {"numpy", "torch", "onnx", "onnxruntime", "tokenizers", "rich", "transformers"}


# The functions


def test_a_name_is_short_unless_only_a_full_name_fits(bundles: Path) -> None:
    assert bundle_names({}, "") == ["other", "tiny-bert"]
    assert bundle_names({}, "o") == ["other"]
    assert bundle_names({}, "organization/") == ["organization/other"]
    assert bundle_names({}, "x") == []


def test_a_name_is_offered_once(bundles: Path) -> None:
    shutil.copytree(bundles / "other", bundles / "copy")
    assert bundle_names({}, "") == ["other", "tiny-bert"]


def test_the_artifacts_are_those_of_the_bundle_that_is_named(bundles: Path, tiny_built: Path) -> None:
    artifacts = [each["id"] for each in json.loads((tiny_built / "firstvec.json").read_text())["artifacts"]]
    for given in ({"model": "other"}, {"model": "no-such", "model_argument": "other"}, {"model": str(tiny_built)}):
        assert artifact_ids(given, "") == artifacts
    assert artifact_ids({"model": "other"}, "onnx-fp") == ["onnx-fp32"]
    assert artifact_ids({"model": "no-such"}, "") == []
    assert artifact_ids({"model": str(bundles / "broken")}, "") == []
    assert artifact_ids({}, "") == []
