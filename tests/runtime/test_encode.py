"""`firstvec encode` without the command-line libraries: the same command, sooner."""

from __future__ import annotations

import json
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
