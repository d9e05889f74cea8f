"""The command line in typer: help texts, wrong usage, and commands that other packages add."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from firstvec.commands import app as app_module
from firstvec.commands.app import make_app
from firstvec.commands.main import main
from firstvec.commands.table import COMMANDS
from tests.conftest import Fresh
from tests.keys import make_keys

NAMES = (*COMMANDS, "build", "export", "pull", "push", "sbom", "sign", "wheel")
TAKE_A_BUNDLE = ("inspect", "explain", "verify", "doctor", "wheel", "sign", "sbom")


def words(text: str) -> str:
    """The text without the boxes and line ends that typer draws."""
    return " ".join(word for word in text.split() if set(word) - set("│╭╮╰╯─"))


@pytest.mark.parametrize("command", NAMES)
def test_every_command_has_help(command: str, firstvec: Fresh) -> None:
    done = firstvec(command, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout
    assert f"firstvec {command}" in done.stdout
    assert firstvec(command, "-h").stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_every_option_of_the_table(command: str, firstvec: Fresh) -> None:
    done = firstvec(command, "--help", COLUMNS="250", TERMINAL_WIDTH="250")
    text = words(done.stdout)
    for option in COMMANDS[command].options:
        assert all(name in text for name in option.names)
        assert words(option.help) in text
        assert not option.choices or f"One of {', '.join(option.choices)}." in text
    paragraphs = str(COMMANDS[command].load().__doc__).split("\n\n")
    assert all(words(paragraph) in text for paragraph in paragraphs)


def test_a_paragraph_of_help_has_no_line_ends_of_its_source(firstvec: Fresh) -> None:
    text = firstvec("encode", "--help", COLUMNS="250", TERMINAL_WIDTH="250").stdout
    assert "the lines of stdin. Every argument behind -- is a text" in text


def test_no_command_prints_the_commands(firstvec: Fresh) -> None:
    for done in (firstvec(), firstvec("--help")):
        assert all(command in done.stdout for command in NAMES)
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "--strategy", "fast", "text"], "'lazy', 'background', 'progressive', 'quantized', 'cached'"),
        (["encode", "--format", "xml", "text"], "'json', 'jsonl', 'csv', 'npy', 'text'"),
        (["encode", "--batch-size", "0", "text"], "--batch-size"),
        (["encode", "--min-quality", "2", "text"], "--min-quality"),
        (["encode", "--unknown", "text"], "--unknown"),
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["list", "--nonsense"], "--nonsense"),
        (["explain", "--modle", "x"], "--model"),
        (["inspct"], "Did you mean 'inspect'"),
        (["build", "--min-cosine", "1.5"], "--min-cosine"),
        (["build", "--min-neighbour-overlap", "-0.1"], "--min-neighbour-overlap"),
    ],
    ids=str,
)
def test_wrong_usage_exits_with_2_and_the_choices(arguments: list[str], message: str, firstvec: Fresh) -> None:
    done = firstvec(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: firstvec" in done.stderr
    assert message in words(done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["encode", "text", "-m"], ["explain", "--device"]])
def test_an_option_without_its_value_exits_with_2(arguments: list[str], firstvec: Fresh) -> None:
    done = firstvec(*arguments)
    assert done.returncode == 2
    assert f"'{arguments[-1]}' requires an argument" in done.stderr


def test_every_argument_that_is_too_much_is_named(firstvec: Fresh) -> None:
    done = firstvec("verify", "a", "--strict", "b", "[bold]c[/bold]")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: firstvec verify [OPTIONS] [MODEL]" in done.stderr
    assert "unexpected arguments 'b', '[bold]c[/bold]'." in words(done.stderr)
    assert "`firstvec verify` takes one MODEL and options only" in words(done.stderr)
    done = firstvec("list", "here")
    assert done.returncode == 2
    assert "unexpected argument 'here'. `firstvec list` takes options only" in words(done.stderr)
    assert "MODEL" not in done.stderr


# Two ways to name a bundle


@pytest.mark.parametrize("command", TAKE_A_BUNDLE)
def test_a_bundle_is_named_with_and_without_its_option(command: str, tiny_bundle: Path, firstvec: Fresh) -> None:
    options: tuple[object, ...] = ()
    if command == "wheel":
        options = ("--output", tiny_bundle.parent / "dist")
    elif command == "sign":
        options = ("--private-key", make_keys(tiny_bundle.parent / "keys").private)
    elif command == "doctor":
        options = ("--quick",)
    found = [
        firstvec(command, *given, *options, FIRSTVEC_ARTIFACTS=str(tiny_bundle.parent))
        for given in (("--model", tiny_bundle), (tiny_bundle,), ("tiny-bert",), ("tiny-bert", "-m", "tiny-bert"))
    ]
    assert {(done.returncode, done.stderr) for done in found} == {(0, "")}
    if command != "doctor":  # the available memory changes
        assert len({done.stdout for done in found}) == 1


@pytest.mark.parametrize("command", [*TAKE_A_BUNDLE, "build"])
@pytest.mark.parametrize("arguments", [["one", "-m", "two"], ["-mtwo", "one"], ["--model=two", "--", "one"]])
def test_two_names_of_a_bundle_are_one_message(command: str, arguments: list[str], firstvec: Fresh) -> None:
    options = ["--private-key", "no/such.pem"] if command == "sign" else []
    done = firstvec(command, *options, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: MODEL is given twice, as 'one' and as 'two': give one of them\n"


@pytest.mark.parametrize("command", [*TAKE_A_BUNDLE, "build"])
def test_help_has_both_ways(command: str, firstvec: Fresh) -> None:
    text = words(firstvec(command, "--help", COLUMNS="250", TERMINAL_WIDTH="250").stdout)
    assert f"Usage: firstvec {command} [OPTIONS] [MODEL]" in text
    arguments, _, options = text.partition("─ Options ─") if "─ Options ─" in text else text.partition(" Options ")
    assert "MODEL" in arguments
    assert "The same as the argument MODEL." in options


@pytest.mark.parametrize("command", ["wheel", "sbom"])
def test_a_command_that_needs_a_bundle_says_so(command: str, firstvec: Fresh) -> None:
    done = firstvec(command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "MODEL is missing. Name of a bundle, or the path of its folder." in words(done.stderr)
    assert f"Usage: firstvec {command} [OPTIONS] [MODEL]" in done.stderr


def test_options_that_only_typer_reads_work(tiny_built: Path, firstvec: Fresh) -> None:
    """The quick parser leaves a value that is glued to its option to typer, and the command is the same."""
    glued = firstvec("encode", f"-m{tiny_built}", "-ftext", "one", "two")
    plain = firstvec("encode", "-m", tiny_built, "-f", "text", "one", "two")
    assert (glued.returncode, glued.stdout) == (0, plain.stdout)
    assert plain.stdout


def test_an_exit_code_passes_through_typer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTVEC_ARTIFACTS", str(tmp_path))
    with pytest.raises(SystemExit) as quick:
        main(["doctor", "--quick"])
    with pytest.raises(SystemExit) as full:
        make_app(["doctor", "--quick"])(["doctor", "--quick"])
    assert (quick.value.code, full.value.code) == (1, 1)


def install(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    def entry_points(group: str) -> Iterable[EntryPoint]:
        assert group == "firstvec.commands"
        return entries

    monkeypatch.setattr(app_module, "entry_points", entry_points)


def test_another_package_adds_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more_commands.py").write_text(
        "def register(app):\n    @app.command()\n    def greet(name: str) -> None:\n        print('hello', name)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    install(monkeypatch, EntryPoint("more", "more_commands:register", "firstvec.commands"))
    with pytest.raises(SystemExit) as ended:
        main(["greet", "you"])
    assert (ended.value.code, capsys.readouterr().out) == (0, "hello you\n")


@pytest.mark.parametrize(
    ("value", "reason"),
    [("no_such_package:register", "no_such_package"), ("json:no_such_function", "no_such_function")],
)
def test_another_package_that_cannot_be_imported_is_named(
    value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, EntryPoint("more", value, "firstvec.commands"))
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    message = str(ended.value.code)
    assert message.startswith(f"error: the package {value.partition(':')[0]} adds commands to firstvec, and cannot be")
    assert reason in message
    assert "uninstall it" in message


def test_the_commands_of_the_toolchain_come_by_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"build", "export", "pull", "push", "sbom", "sign", "wheel"} <= {
        info.name or info.callback.__name__ for info in registered()
    }
    install(monkeypatch)
    assert [info.name for info in registered()] == [*COMMANDS]


def registered() -> list[typer.models.CommandInfo]:
    return make_app().registered_commands


def test_an_empty_path_is_not_the_working_folder(tiny_built: Path, firstvec: Fresh) -> None:
    for arguments in (
        ["build", tiny_built, "-o", ""],
        ["wheel", "--model", tiny_built, "--output", ""],
        ["sign", "--model", tiny_built, "--private-key", ""],
    ):
        done = firstvec(*arguments)
        assert done.returncode == 1, arguments
        assert " is empty: give a path" in done.stderr, arguments


def test_without_the_toolchain_build_says_how_to_install_it(tmp_path: Path, fresh: Fresh) -> None:
    code = """
import importlib.metadata, sys
real = importlib.metadata.version
def without_onnx(name):
    if name == "onnx":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = without_onnx
from firstvec.commands.main import main
main(["build", "--quiet", "--output", sys.argv[1]])
"""
    done = fresh(code, tmp_path, check=False)
    assert done.returncode == 1
    assert "pip install 'firstvec[build]'" in done.stderr
    assert "Traceback" not in done.stderr
