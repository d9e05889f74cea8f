"""`firstvec encode` without the command-line libraries: the same command, sooner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstvec import encode
from firstvec.encode import Request, parse
from tests.conftest import Fresh


def options_of_typer() -> dict[str, str]:
    """Option → parameter of `firstvec encode`, as typer has them."""
    import typer.main

    from firstvec.cli import app

    command: Any = typer.main.get_command(app)
    parameters = command.commands["encode"].params
    return {option: each.name for each in parameters for option in each.opts if option.startswith("-")}


def test_the_options_are_those_of_the_full_command_line() -> None:
    quick = {option: field for option, (field, _read) in encode.OPTIONS.items()}
    assert {**quick, "--enable-quantization": "enable_quantization"} == options_of_typer()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["one"],
        ["one", "two words", ""],
        ["-"],
        ["-m", "model", "one"],
        ["--model=a=b", "one", "--strategy", "QUANTIZED"],
        ["one", "-s", "cached", "-f", "text", "-o", "file", "--batch-size", "7"],
        ["--enable-quantization", "--min-quality", "-0.5", "--device=cpu", "one", "--format=npy"],
        ["-f", "text", "-f", "json", "one"],
        ["--require-signature", "signer.pub", "one"],
    ],
    ids=" ".join,
)
def test_what_is_parsed_is_what_typer_parses(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from firstvec.cli import app

    requests: list[Request] = []
    monkeypatch.setattr(encode, "run", requests.append)
    app(["encode", *arguments], standalone_mode=False)
    assert requests == [parse(arguments)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-h"],
        ["--unknown"],
        ["--"],
        ["--", "-text"],
        ["-mmodel"],
        ["-m"],
        ["-m=model"],
        ["--enable-quantization=yes"],
        ["--strategy", "eager"],
        ["--format", "JSON"],
        ["--format", "xml"],
        ["--batch-size", "0"],
        ["--batch-size", "many"],
        ["--min-quality", "2"],
        ["--min-quality", "nan"],
        ["one", "--output"],
        ["--mod", "model"],
    ],
    ids=" ".join,
)
def test_what_is_not_plain_is_left_to_the_full_command_line(arguments: list[str]) -> None:
    assert parse(arguments) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "eager", "text"], "eager"),
        (["--batch-size", "0", "text"], "--batch-size"),
        (["--unknown", "text"], "--unknown"),
        (["text", "-m"], "-m"),
    ],
    ids=str,
)
def test_a_wrong_option_is_explained_by_the_full_command_line(
    arguments: list[str], message: str, firstvec: Fresh
) -> None:
    done = firstvec("encode", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_text_that_begins_with_a_dash_is_taken_after_two(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, "--", "-text")
    assert len(json.loads(done.stdout)["vectors"]) == 1


@pytest.mark.parametrize(("form", "numpy"), [("json", False), ("text", False), ("npy", True)])
def test_only_what_is_needed_is_imported(
    form: str, numpy: bool, tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    code = """
import sys
from firstvec.__main__ import main
main(["encode", "-m", sys.argv[1], "-f", sys.argv[2], "-o", sys.argv[3], "text"])
print(sorted({"typer", "rich", "click", "numpy", "tokenizers", "onnxruntime", "argparse", "enum"} & set(sys.modules)))
"""
    imported = fresh(code, tiny_built, form, tmp_path / "vectors").stdout
    assert ("numpy" in imported, "typer" in imported, "rich" in imported) == (numpy, False, False)
    assert (tmp_path / "vectors").stat().st_size > 32 * 4


def test_an_error_is_one_message(fresh: Fresh) -> None:
    code = "from firstvec.__main__ import main; main(['encode', '-m', 'no/such-model', 'text'])"
    done = fresh(code, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no bundle for model 'no/such-model' was found.")
    assert "Traceback" not in done.stderr


def shell(command: str, *values: object) -> subprocess.CompletedProcess[str]:
    """Run a command line of bash, in which $F is `firstvec` and $1 … are the values."""
    arguments = ["bash", "-c", f"set -o pipefail; F={Path(sys.executable).with_name('firstvec')}; {command}", "bash"]
    return subprocess.run([*arguments, *map(str, values)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("redirected", ["-o /dev/stdout | cat", "-o >(cat)", "-o /dev/stdout", "-o /dev/fd/1 | cat"])
def test_a_pipe_is_written_to(redirected: str, tiny_built: Path) -> None:
    done = shell(f"$F encode -m $1 text {redirected}", tiny_built)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["embedding_dim"] == 32


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_file_is_written_with_a_closed_stdout_or_stderr(closed: str, tiny_built: Path, tmp_path: Path) -> None:
    assert shell(f"$F encode -m $1 text -o $2 {closed}", tiny_built, tmp_path / "out").returncode == 0
    assert json.loads((tmp_path / "out").read_text())["embedding_dim"] == 32


@pytest.mark.parametrize("command", ["encode text", "list", "doctor --json"])
def test_a_closed_stdout_is_an_error(command: str) -> None:
    done = shell(f"$F {command} >&-")
    assert (done.returncode, done.stderr.startswith("error: stdout is closed")) == (1, True)


def test_a_closed_stderr_does_not_matter(tiny_built: Path) -> None:
    assert len(json.loads(shell("$F encode -m $1 text 2>&-", tiny_built).stdout)["vectors"]) == 1


@pytest.mark.parametrize("name", ["a" * 250 + ".json", "ä b.json", ".hidden"])
def test_any_name_that_the_file_system_takes(name: str, tiny_built: Path, tmp_path: Path) -> None:
    done = shell('$F encode -m $1 text -o "$2"', tiny_built, tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("output", ["''", "/no/such/folder/file", "/tmp", "new/", "loop"])
def test_an_output_that_cannot_be_written_is_named(output: str, tiny_built: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    done = shell(f"cd $2; $F encode -m $1 text -o {output}", tiny_built, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "choose another --output" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
