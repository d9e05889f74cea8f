"""The command as a process: exit codes, messages, closed streams, what it imports, and what works without typer."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firstvec import __version__
from firstvec.commands.main import main
from firstvec.commands.table import COMMANDS, Command
from firstvec.errors import InputError
from tests.conftest import Fresh
from tests.runtime.commands.conftest import PROGRAM, Shell

NAMES = (*COMMANDS,)
"""The commands of the runtime."""


def test_the_version_is_printed(firstvec: Fresh) -> None:
    assert firstvec("--version").stdout == f"firstvec {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["list", "--json"], ["explain", "x"], ["encode", "--nonsense"], []]
)
def test_python_m_firstvec_is_the_same_command(arguments: list[str], firstvec: Fresh) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "firstvec", *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    same = firstvec(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (same.returncode, same.stdout, same.stderr)
    assert done.stdout + done.stderr


def test_a_full_disk_is_one_message(tiny_built: Path, shell: Shell) -> None:
    done = shell("$F encode -m $1 text > /dev/full", tiny_built)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device)\n"


def test_a_reader_that_stops_early_is_no_error_message(tiny_built: Path, shell: Shell) -> None:
    done = shell("$F encode -m $1 -f text one two | head -c 5", tiny_built)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) == 5


@pytest.mark.parametrize("command", ["encode text", "list", "doctor --json", "--help", "--nonsense"])
def test_a_closed_stdout_is_an_error(command: str, shell: Shell) -> None:
    done = shell(f"$F {command} >&-")
    assert (done.returncode, done.stderr.startswith("error: stdout is closed")) == (1, True)


def test_a_closed_stderr_does_not_matter(tiny_built: Path, shell: Shell) -> None:
    assert len(json.loads(shell("$F encode -m $1 text 2>&-", tiny_built).stdout)["vectors"]) == 1


@pytest.mark.parametrize("command", ["list", "inspect", "explain", "verify", "doctor"])
def test_a_terminal_with_ascii_only_is_no_error(command: str, bundle: Path, firstvec: Fresh) -> None:
    options = ["--quick"] if command == "doctor" else []
    done = firstvec(command, *options, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "all-MiniLM-L6-v2" in done.stdout or "onnx-fp32" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "--model", "no/such", "text"], "firstvec build no/such"),
        (["encode", "--model", "/nonexistent/folder", "text"], "/nonexistent/folder"),
        (["encode", "-o", "/etc/hostname/x", "--model", "{tiny}", "text"], "--output"),
        (["encode", "--device", "cuda", "--model", "{tiny}", "text"], "Leave the device out"),
        (["encode", "--device", "gpu", "--model", "{tiny}", "text"], "use 'cpu', 'cuda', 'cuda:1' or 'mps'"),
        (["encode", "--artifact", "onnx-fp64", "--model", "{tiny}", "text"], "onnx-fp64"),
        (["encode", "--model", "", "text"], "is not a name or a path"),
        (["inspect", "--model", "no/such"], "no/such"),
        (["inspect", "no/such"], "no/such"),
        (["inspect", "one", "--model", "two"], "MODEL is given twice"),
        (["explain", "--model", "no/such"], "no/such"),
        (["verify", "--model", "no/such"], "no/such"),
        (["doctor", "--model", "no/such"], "no/such"),
        (["wheel", "--model", "no/such"], "no/such"),
        (["build", "/nonexistent/folder"], "there is no such folder"),
        (["build", "--only", "onnx-fp64"], "onnx-int8-avx2"),
        (["build", "some-package==1.0"], "--sha256"),
    ],
)
def test_a_known_error_is_one_message_and_exit_code_1(
    arguments: list[str], message: str, tiny_built: Path, firstvec: Fresh
) -> None:
    done = firstvec(*(argument.format(tiny=tiny_built) for argument in arguments))
    assert done.returncode == 1
    assert message in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_one_message(fresh: Fresh) -> None:
    code = "from firstvec.commands.main import main; main(['encode', '-m', 'no/such-model', 'text'])"
    done = fresh(code, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no bundle for model 'no/such-model' was found.")
    assert "Traceback" not in done.stderr


def test_a_name_reaches_the_terminal_as_text(tiny_bundle: Path, firstvec: Fresh) -> None:
    """Whoever can name a folder must not write to the terminal of a user who lists it."""
    place = tiny_bundle.parent / "bundles"
    for name, broken in (("\x1b]0;owned\x07\x9b2J", False), ("\x1b[31mred", True)):
        copy = Path(shutil.copytree(tiny_bundle, place / name))
        if broken:
            (copy / "firstvec.json").write_bytes(b"\x1b[31m")
    (owned,) = place.glob("*owned*")
    for arguments in (
        *(["list"], ["doctor", "--quick"], ["verify"], ["verify", "--strict", "-m", owned]),
        *(["inspect", "-m", owned], ["doctor", "--quick", "-m", owned]),
    ):
        done = firstvec(*arguments, FIRSTVEC_ARTIFACTS=str(place))
        assert not set("\x1b\x07\x9b") & set(done.stdout + done.stderr), arguments
        assert r"\x1b]0;owned" in done.stdout, arguments
    for arguments in (["list"], ["verify"], ["doctor", "--quick"]):
        assert r"\x1b[31mred" in firstvec(*arguments, FIRSTVEC_ARTIFACTS=str(place)).stdout, arguments
    done = firstvec("encode", "-m", next(place.glob("*red")), "text")
    assert done.returncode == 1
    assert r"\x1b[31mred" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("arguments", [["\x1b[31m"], ["list", "\x1b[31m"], ["encode", "--\x1b[31m"], ["list", "-\x9b"]])
def test_a_wrong_argument_reaches_the_terminal_as_text(arguments: list[str], firstvec: Fresh) -> None:
    done = firstvec(*arguments)
    assert done.returncode == 2
    assert not set("\x1b\x9b") & set(done.stdout + done.stderr)


@pytest.mark.native
# Not `embed` and `bench`, because pyarrow and numpy alone need more addresses.
@pytest.mark.parametrize(
    "command", [*(name for name in NAMES if name not in ("embed", "bench")), "encode --artifact onnx-fp32"]
)
def test_too_little_memory_for_the_libraries_is_one_message(command: str, tiny_built: Path) -> None:
    """Whatever cannot be imported or made under a limit of addresses (`ulimit -v`), there is no traceback."""
    name, *options = command.split()
    model = ["-m", str(tiny_built), *options]
    texts = ["text", *([str(tiny_built / "config.json")] if name == "similar" else [])]
    arguments = {"list": [], "doctor": [*model, "--quick"]}.get(name, model)
    arguments = [*arguments, *(texts if name in ("encode", "similar") else [])]
    messages = 0
    for megabytes in (25, 40, 60, 90, 130, 200):
        limited = f"ulimit -v {megabytes * 1024}; exec {shlex.join([PROGRAM, name, *arguments])}"
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False, timeout=300)
        assert "Traceback" not in done.stderr, (megabytes, done.stderr)
        if done.returncode:
            messages += "error: " in done.stderr
        if not options and megabytes >= 60:
            # All but onnxruntime works there. `doctor` then reports that an engine crashed.
            assert done.returncode == 0 or command == "doctor", (megabytes, done.stderr)
            assert done.stderr == ""
            assert done.stdout
    assert messages or not options


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "error: out of memory; give the process more, or less to do at once"),
        (OSError(12, "Cannot allocate memory"), "error: out of memory; give the process more, or less to do at once"),
        (OSError(28, "No space left on device"), "error: the output cannot be written (No space left on device)"),
        (OSError(24, "Too many open files", "a\x1bb"), r"error: a\x1bb cannot be used (Too many open files)"),
        (BrokenPipeError(32, "Broken pipe"), 0),
        (KeyboardInterrupt(), 130),
        (
            ImportError("x.so: failed to map segment"),
            "error: a library cannot be loaded (x.so: failed to map segment); give the process more memory, or repair "
            "it",
        ),
        (InputError("no\x9b"), r"error: no\x9b"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_of_a_command_ends_the_process_with_one_message(
    error: BaseException, code: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(Command, "load", lambda _: fail)
    with (tmp_path / "stdout").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            main(["list"])
    assert ended.value.code == code


HEAVY = {"numpy", "torch", "onnxruntime", "tokenizers", "typer", "rich", "click", "pydantic", "firstvec_build"}
IMPORTED = """
import io, sys
from firstvec.commands.main import main
out, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO())
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print(*sorted(name for name in sys.modules if "." not in name), file=out)
"""


@pytest.mark.parametrize("command", ["--version", "list", "inspect", "explain", "verify", "doctor"])
def test_a_command_of_the_runtime_imports_no_large_package(command: str, tiny_built: Path, fresh: Fresh) -> None:
    arguments = {"--version": [], "list": [], "doctor": ["--quick"]}.get(command, ["--model", tiny_built])
    imported = {*fresh(IMPORTED, command, *arguments).stdout.split()}
    assert imported & HEAVY == set()
    assert "firstvec" in imported
    if command == "--version":
        assert imported & {"re", "json", "enum", "typing", "subprocess"} == set()


@pytest.mark.parametrize("command", NAMES)
def test_help_imports_nothing_of_the_toolchain(command: str, fresh: Fresh) -> None:
    imported = {*fresh(IMPORTED, command, "--help").stdout.split()}
    assert imported & {"numpy", "torch", "onnx", "transformers"} == set()
    assert {"typer", "firstvec_build"} <= imported


@pytest.mark.native
def test_plain_use_works_without_the_extra_cli(tiny_built: Path, tmp_path: Path, bare: Fresh) -> None:
    model = ["--model", tiny_built]
    for arguments, found in (
        (["--version"], __version__),
        (["list"], "tiny-bert"),
        (["inspect", *model], "onnx-fp32"),
        (["explain", *model, "-s", "lazy", "--enable-quantization"], "native-int8"),
        (["explain", tiny_built, "-s", "lazy", "--enable-quantization"], "native-int8"),
        (["similar", *model, "-k", "1", "text", tiny_built / "config.json"], f"  {tiny_built}/config.json:"),
        (["verify", *model, "--strict"], "onnx/model.onnx_data"),
        (["doctor", "--quick", f"--model={tiny_built}"], "native-fp32"),
        (["encode", *model, "--artifact", "onnx-fp32", "text"], '"artifact": "onnx-fp32"'),
        (["encode", *model, "-f", "text", "--batch-size=2", "--", "-text"], " "),
    ):
        done = bare(*arguments, FIRSTVEC_ARTIFACTS=str(tiny_built))
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert found in done.stdout, arguments
    assert bare("encode", *model, "-o", tmp_path / "vectors.npy", "text").returncode == 0
    assert (tmp_path / "vectors.npy").stat().st_size > 32 * 4


def test_a_typed_error_needs_no_extra(bare: Fresh) -> None:
    done = bare("encode", "--model", "no/such", "text")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no bundle for model 'no/such' was found.")


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["--help"], ["-h"], ["build"], ["wheel", "--model", "x"], ["nonsense"], ["--nonsense"]),
        *(["list", "--nonsense"], ["list", "--help"], ["explain", "one", "two"], ["encode", "-s", "fast", "x"]),
    ],
    ids=" ".join,
)
def test_what_needs_typer_says_so_and_how_to_install_it(arguments: list[str], bare: Fresh) -> None:
    done = bare(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("needs typer, which is not installed: pip install 'firstvec[cli]'\n")
    assert ", ".join(NAMES) in done.stderr
    assert "--help and `build`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_mistake_of_firstvec_is_no_missing_package(fresh: Fresh) -> None:
    code = """
import sys
sys.modules["firstvec.commands.app"] = None
from firstvec.commands.main import main
main(["--help"])
"""
    done = fresh(code, check=False)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install" not in done.stderr
