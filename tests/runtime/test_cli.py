"""The command line, as a person and as a program would use it."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from firstvec import LoadingStrategy, OptimizedEmbeddingLoader, __version__
from tests.conftest import Fresh, edit_manifest

COMMANDS = ("encode", "list", "inspect", "explain", "verify", "doctor", "build", "wheel", "sign", "sbom")


@pytest.fixture
def vectors(tiny_built: Path) -> np.ndarray:
    return OptimizedEmbeddingLoader(str(tiny_built)).get_provider().encode(["one", "two words"])


def test_the_version_is_printed(firstvec: Fresh) -> None:
    assert firstvec("--version").stdout == f"firstvec {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, firstvec: Fresh) -> None:
    done = firstvec(command, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout
    assert f"firstvec {command}" in done.stdout


def test_no_command_prints_the_commands(firstvec: Fresh) -> None:
    done = firstvec()
    assert all(command in done.stdout for command in COMMANDS)


def test_encode_prints_json(tiny_built: Path, firstvec: Fresh, vectors: np.ndarray) -> None:
    done = firstvec("encode", "--model", tiny_built, "one", "two words")
    assert (done.returncode, done.stderr) == (0, "")
    values = json.loads(done.stdout)
    assert (values["artifact"], values["embedding_dim"]) == ("onnx-fp32", 32)
    np.testing.assert_allclose(values["vectors"], vectors, atol=1e-6)


def test_encode_prints_text_a_line_a_vector(tiny_built: Path, firstvec: Fresh, vectors: np.ndarray) -> None:
    done = firstvec("encode", "--model", tiny_built, "--format", "text", "one", "two words")
    np.testing.assert_allclose(np.loadtxt(io.StringIO(done.stdout)), vectors, atol=1e-6)


def test_encode_reads_a_text_a_line_from_stdin(tiny_built: Path, firstvec: Fresh, vectors: np.ndarray) -> None:
    done = firstvec("encode", "-m", tiny_built, "-f", "text", stdin="one\ntwo words\n")
    np.testing.assert_allclose(np.loadtxt(io.StringIO(done.stdout)), vectors, atol=1e-6)


def test_only_newlines_end_a_text_on_stdin(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, "-f", "text", stdin="a\x0cb\u2028c\u0085d\r\n\nlast".encode())
    assert len(done.stdout.splitlines()) == 3


def test_encode_writes_through_what_is_no_regular_file(tiny_built: Path, tmp_path: Path, firstvec: Fresh) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert firstvec("encode", "-m", tiny_built, "-o", link, "text").returncode == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["embedding_dim"] == 32
    assert target.stat().st_mode & 0o777 == 0o640
    assert firstvec("encode", "-m", tiny_built, "-o", "/dev/null", "text").returncode == 0
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_is_one_message(tiny_built: Path) -> None:
    command = f"{Path(sys.executable).with_name('firstvec')} encode -m {tiny_built} text > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device)\n"


def test_a_terminal_without_check_marks_is_no_error(bundle: Path, firstvec: Fresh) -> None:
    done = firstvec("explain", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


def test_strategies_are_accepted_in_capitals(tiny_built: Path, firstvec: Fresh) -> None:
    assert firstvec("encode", "-m", tiny_built, "-s", "QUANTIZED", "text").returncode == 0


def test_python_m_firstvec_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "firstvec", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"firstvec {__version__}\n"


def test_encode_writes_npy_to_a_file_and_to_a_pipe(
    tiny_built: Path, tmp_path: Path, firstvec: Fresh, vectors: np.ndarray
) -> None:
    target = tmp_path / "vectors.npy"
    assert firstvec("encode", "-m", tiny_built, "-f", "npy", "-o", target, "one", "two words").returncode == 0
    np.testing.assert_array_equal(np.load(target), vectors)
    assert np.load(target).dtype == np.float32
    assert list(tmp_path.glob(".*vectors*")) == []
    piped = firstvec("encode", "-m", tiny_built, "-f", "npy", stdin=b"one\ntwo words")
    np.testing.assert_array_equal(np.load(io.BytesIO(piped.stdout)), vectors)


def test_encode_takes_int8_when_asked(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, "-s", "quantized", "one")
    assert json.loads(done.stdout)["artifact"].startswith("onnx-int8-")


def test_list_shows_bundles(bundle: Path, firstvec: Fresh) -> None:
    assert "sentence-transformers/all-MiniLM-L6-v2" in firstvec("list").stdout
    values = json.loads(firstvec("list", "--json").stdout)
    [found] = [item for item in values["bundles"] if item["path"] == str(bundle)]
    assert found["embedding_dim"] == 384


def test_list_of_nothing_says_where_it_looked(tmp_path: Path, firstvec: Fresh) -> None:
    done = firstvec("list", FIRSTVEC_ARTIFACTS=str(tmp_path / "none"))
    assert done.returncode == 0
    assert str(tmp_path / "none") in done.stdout
    assert "firstvec build" in done.stdout


def test_inspect_shows_quality_and_reasons(bundle: Path, firstvec: Fresh) -> None:
    text = firstvec("inspect", "all-MiniLM-L6-v2").stdout
    assert "1110a243fdf4706b3f48f1d95db1a4f5529b4d41" in text
    assert "avx2: 7-bit weights" in text
    assert "held to max_abs_diff ≤ 1e-05" in text
    assert "held to cosine_mean ≥ 0.995, cosine_min ≥ 0.97, neighbour_overlap ≥ 0.9, batch_cosine_min ≥ 0.9999" in text
    assert "depends on the texts that share its batch" not in text
    values = json.loads(firstvec("inspect", "all-MiniLM-L6-v2", "--json").stdout)
    assert len(values["artifacts"]) == 5


def test_explain_gives_every_strategy_and_every_reason(bundle: Path, firstvec: Fresh) -> None:
    text = firstvec("explain").stdout
    assert all(strategy.name in text for strategy in LoadingStrategy)
    values = json.loads(firstvec("explain", "--json").stdout)["strategies"]
    for found in values.values():
        assert len(found["rejected"]) + len(found["fallbacks"]) + 1 == 5
        assert all(found["rejected"].values())


def test_explain_says_whether_the_files_were_verified_before(
    tiny_bundle: Path, tmp_path: Path, firstvec: Fresh
) -> None:
    def explain() -> tuple[bool, bool]:
        arguments = ("explain", tiny_bundle, "--strategy", "lazy")
        values = json.loads(firstvec(*arguments, "--json", FIRSTVEC_CACHE=cache).stdout)
        text = firstvec(*arguments, FIRSTVEC_CACHE=cache).stdout
        return values["strategies"]["lazy"]["verified_before"], "files verified before" in text

    cache = str(tmp_path / "cache")
    assert explain() == (False, False)
    assert explain() == (False, False)  # it hashes nothing itself
    firstvec("encode", "-m", tiny_bundle, "text", FIRSTVEC_CACHE=cache)
    assert explain() == (True, True)
    (tiny_bundle / "onnx/model.onnx").touch()
    assert explain() == (False, False)


def test_explain_shows_a_strategy_that_has_no_artifact(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("explain", tiny_built, "--min-quality", "0.99999", "--json")
    assert done.returncode == 0
    strategies = json.loads(done.stdout)["strategies"]
    assert "min_quality" in strategies["quantized"]["error"]
    assert strategies["lazy"]["artifact"] == "onnx-fp32"


def test_verify_accepts_a_whole_bundle_and_names_a_changed_file(tiny_bundle: Path, firstvec: Fresh) -> None:
    assert firstvec("verify", tiny_bundle).returncode == 0
    path = tiny_bundle / "onnx/model.onnx_data"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)
    done = firstvec("verify", tiny_bundle)
    assert done.returncode == 1
    assert "onnx/model.onnx_data" in done.stdout
    assert "Traceback" not in done.stderr
    values = json.loads(firstvec("verify", tiny_bundle, "--json").stdout)
    assert values["ok"] is False


def test_doctor_shows_the_machine_and_each_strategy(bundle: Path, firstvec: Fresh) -> None:
    done = firstvec("doctor")
    assert done.returncode == 0
    assert all(strategy.name in done.stdout for strategy in LoadingStrategy)
    values = json.loads(firstvec("doctor", "--json").stdout)
    assert values["healthy"] is True
    assert values["machine"]["engines"]["onnxruntime"]
    assert values["onnxruntime"].startswith("through its C API: ")
    binding = firstvec("doctor", "--json", FIRSTVEC_ONNXRUNTIME="binding")
    assert json.loads(binding.stdout)["onnxruntime"] == "through its Python binding: FIRSTVEC_ONNXRUNTIME=binding"
    assert values["bundles"][str(bundle)]["lazy"]["artifact"] == "onnx-fp32"


def test_doctor_without_a_bundle_says_what_to_do_and_fails(tmp_path: Path, firstvec: Fresh) -> None:
    done = firstvec("doctor", FIRSTVEC_ARTIFACTS=str(tmp_path))
    assert done.returncode == 1
    assert "firstvec build" in done.stdout


def test_doctor_shows_a_broken_bundle(tiny_bundle: Path, firstvec: Fresh) -> None:
    edit_manifest(tiny_bundle, lambda document: document.update(format_version="9.0"))
    done = firstvec("doctor", FIRSTVEC_ARTIFACTS=str(tiny_bundle.parent))
    assert done.returncode == 1
    assert "upgrade firstvec" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "--model", "no/such", "text"], "firstvec build no/such"),
        (["encode", "--model", "/nonexistent/folder", "text"], "/nonexistent/folder"),
        (["encode", "-o", "/etc/hostname/x", "--model", "{tiny}", "text"], "--output"),
        (["encode", "--device", "cuda", "--model", "{tiny}", "text"], "Leave the device out"),
        (["inspect", "no/such"], "no/such"),
        (["explain", "no/such"], "no/such"),
        (["verify", "no/such"], "no/such"),
        (["wheel", "no/such"], "no/such"),
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


@pytest.mark.parametrize(
    ("stdin", "message"),
    [("", "there is no text"), (b"\xff\xfe", "not UTF-8")],
)
def test_encode_without_usable_text_fails(stdin: str | bytes, message: str, tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, stdin=stdin)
    assert done.returncode == 1
    assert message in str(done.stderr)
    assert "Traceback" not in str(done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "--strategy", "fast", "text"],
        ["encode", "--format", "xml", "text"],
        ["nonsense"],
        ["list", "--nonsense"],
        ["build", "--min-cosine", "1.5"],
        ["build", "--min-neighbour-overlap", "-0.1"],
    ],
)
def test_wrong_usage_exits_with_2_and_the_choices(arguments: list[str], firstvec: Fresh) -> None:
    done = firstvec(*arguments)
    assert done.returncode == 2
    assert "Usage: firstvec" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_cannot_be_written_is_an_error(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, "-o", "/proc/nonexistent/x.json", "text")
    assert done.returncode == 1
    assert "--output" in done.stderr


def test_a_reader_that_stops_early_is_no_error_message(tiny_built: Path) -> None:
    command = f"{Path(sys.executable).with_name('firstvec')} encode -m {tiny_built} -f text one two | head -c 5"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=120)
    assert len(done.stdout) == 5
    assert done.stderr == ""


def test_an_empty_path_is_not_the_working_folder(tiny_built: Path, firstvec: Fresh) -> None:
    for arguments in (
        ["build", tiny_built, "-o", ""],
        ["wheel", tiny_built, "--output", ""],
        ["sign", tiny_built, "--private-key", ""],
    ):
        done = firstvec(*arguments)
        assert done.returncode == 1, arguments
        assert " is empty: give a path" in done.stderr, arguments


def test_a_name_reaches_the_terminal_as_text(tiny_bundle: Path, firstvec: Fresh) -> None:
    """Whoever can name a folder must not write to the terminal of who lists it."""
    place = tiny_bundle.parent / "bundles"
    for name, broken in (("\x1b]0;owned\x07\x9b2J", False), ("\x1b[31mred", True)):
        copy = Path(shutil.copytree(tiny_bundle, place / name))
        if broken:
            (copy / "firstvec.json").write_bytes(b"\x1b[31m")
    for arguments in (["list"], ["doctor", "--quick"], ["verify"], ["verify", "--strict", *place.glob("*owned*")]):
        done = firstvec(*arguments, FIRSTVEC_ARTIFACTS=str(place))
        assert not set("\x1b\x07\x9b") & set(done.stdout + done.stderr), arguments
        assert r"\x1b]0;owned" in done.stdout, arguments
    done = firstvec("encode", "-m", next(place.glob("*red")), "text")
    assert done.returncode == 1
    assert r"\x1b[31mred" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("command", ["list", "inspect", "explain", "verify", "doctor", "encode"])
def test_too_little_memory_for_the_libraries_is_one_message(command: str, tiny_built: Path) -> None:
    """Whatever cannot be imported or made under a limit of addresses (`ulimit -v`), there is no traceback."""
    program = str(Path(sys.executable).with_name("firstvec"))
    arguments = {"encode": ["-m", str(tiny_built), "text"], "list": [], "doctor": []}.get(command, [str(tiny_built)])
    messages = 0
    for megabytes in (40, 60, 90, 130, 200):
        limited = f"ulimit -v {megabytes * 1024}; exec {shlex.join([program, command, *arguments])}"
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False, timeout=120)
        assert "Traceback" not in done.stderr, (megabytes, done.stderr)
        if done.returncode:
            messages += "error: " in done.stderr
    assert messages


def test_commands_of_the_runtime_import_nothing_of_the_toolchain(tiny_built: Path, fresh: Fresh) -> None:
    done = fresh(
        """
import sys
from firstvec.__main__ import main
try:
    main(["inspect", sys.argv[1]])
except SystemExit as ended:
    assert not ended.code
print(sorted({"numpy", "torch", "firstvec_build.pipeline", "firstvec_build.cli"} & set(sys.modules)))
""",
        tiny_built,
    )
    assert done.stdout.splitlines()[-1] == "['firstvec_build.cli']"


def test_without_the_cli_extra_the_command_says_how_to_install_it(fresh: Fresh) -> None:
    code = "import sys; sys.modules['typer'] = None; import firstvec.cli"
    done = fresh(code, check=False)
    assert done.returncode == 1
    assert "pip install 'firstvec[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_toolchain_build_says_how_to_install_it(tmp_path: Path, fresh: Fresh) -> None:
    code = """
import importlib.metadata, sys
real = importlib.metadata.version
def without_optimum(name):
    if name == "optimum":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = without_optimum
from firstvec.__main__ import main
main(["build", "--quiet", "--output", sys.argv[1]])
"""
    done = fresh(code, tmp_path, check=False)
    assert done.returncode == 1
    assert "pip install 'firstvec[build]'" in done.stderr
    assert "Traceback" not in done.stderr
