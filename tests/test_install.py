"""Installing: with a C compiler there is the native engine, and without one the install says why there is none."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

from tests.conftest import REPOSITORY
from tests.package_index import check_with_twine

MODULE, NOTE = "firstvec/_native.abi3.so", "firstvec/_native.txt"
PYTHONS = [sys.executable, *map(str, sorted(Path.home().glob(".pyenv/versions/3.1[2-9]*/bin/python")))]
"""This interpreter, and newer ones for the same module."""

Done = subprocess.CompletedProcess[str]
Hatchling = Callable[..., Done]


def load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("native_build", REPOSITORY / "runtime" / "native" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


native = load_build()
needs_compiler = pytest.mark.skipif(
    native.find_obstacle() is not None or not any(map(native.can_compile, native.find_compilers())),
    reason="this machine has no C compiler, or no headers of Python",
)


def hatchling(code: str, *, root: Path = REPOSITORY, check: bool = True, **environment: str) -> Done:
    """Call the build backend, whose name is `backend`, in a checkout."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTVEC_") and name != "CC"}
    done = subprocess.run(
        [sys.executable, "-c", f"import json; from hatchling import build as backend; {code}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=ours | environment,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def build_wheel(folder: Path, **options: str) -> tuple[Path, str]:
    """Build a wheel of the working tree. Returns the wheel and what the build printed."""
    done = hatchling(f"backend.build_wheel({str(folder)!r})", **options)
    [wheel] = folder.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without a compiler, and without the package ziglang, which may be installed here."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "ziglang.py").write_text("raise ImportError('hidden by the test')\n", "utf-8")
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(modules)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree, with the engine."""
    return build_wheel(tmp_path_factory.mktemp("wheel"), FIRSTVEC_NATIVE="required")[0]


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The unpacked source distribution."""
    hatchling(f"backend.build_sdist({str(tmp_path)!r})")
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    [root] = (tmp_path / "unpacked").iterdir()
    return root


def tags(wheel: Path) -> set[Tag]:
    """Return the tags of the file's name, which must be those of its metadata."""
    _, _, _, named = parse_wheel_filename(wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
        lines = archive.read(metadata).decode().splitlines()
    assert {str(tag) for tag in named} == {line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")}
    assert f"Root-Is-Purelib: {'true' if {tag.platform for tag in named} == {'any'} else 'false'}" in lines
    return set(named)


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def assert_is_pure(wheel: Path) -> None:
    assert tags(wheel) == {Tag("py3", "none", "any")}
    assert NOTE in contents(wheel)
    assert not [name for name in contents(wheel) if name.endswith((".so", ".c", ".h"))]


@needs_compiler
def test_a_package_index_accepts_the_wheel_and_the_source_distribution(wheel: Path, tmp_path: Path) -> None:
    hatchling(f"backend.build_sdist({str(tmp_path)!r})")
    check_with_twine(wheel, *tmp_path.glob("*.tar.gz"))


@needs_compiler
def test_a_wheel_with_the_engine_is_for_this_platform_and_every_python_since_3_11(wheel: Path) -> None:
    [tag] = tags(wheel)
    assert (tag.interpreter, tag.abi) == ("cp311", "abi3")
    if sys.platform == "linux":
        assert tag.platform == sysconfig.get_platform().replace("-", "_")
    assert MODULE in contents(wheel)
    assert NOTE not in contents(wheel)
    assert not [name for name in contents(wheel) if name.endswith((".c", ".h")) or "hatch" in name]


@needs_compiler
@pytest.mark.parametrize("python", PYTHONS)
def test_the_installed_engine_is_imported_by_this_python_and_newer_ones(
    wheel: Path, tmp_path: Path, python: str
) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*install, str(wheel)], check=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import firstvec; from firstvec import _native; "
        "print(_native.__file__); print(*_native.instruction_sets())"
    )
    done = subprocess.run([python, "-I", "-S", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    file, names = done.stdout.splitlines()
    assert file == str(tmp_path / MODULE)
    assert names.split()[-1] == "plain"


@needs_compiler
def test_the_source_distribution_gives_the_same_engine(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    """Also: the same sources in another folder, compiled again, give the same bytes."""
    sources = {path.name for path in (REPOSITORY / "runtime" / "native").iterdir() if path.suffix in (".c", ".h")}
    assert sources | {"build.py", "hatch_build.py"} == {path.name for path in (unpacked / "runtime/native").iterdir()}
    hatchling(f"backend.build_wheel({str(tmp_path)!r})", root=unpacked, FIRSTVEC_NATIVE="required")
    [again] = tmp_path.glob("*.whl")
    assert again.name == wheel.name
    module = read(again, MODULE)
    assert module == read(wheel, MODULE)
    assert str(Path.home()).encode() + b"/" not in module
    assert b"/tmp" not in module


COMMANDS = (
    (["encode", "--format", "text", "how do I reset my password?"], 0, "-0.0"),
    (["encode", "a search for [SEP] and \u09ce"], 0, '"artifact": "native-int8"'),
    (["similar", "--top", "1", "reset a password", "{text}"], 0, "how do I reset my password?"),
    (["explain"], 0, "takes  native-int8"),
    (["list"], 0, "all-MiniLM-L6-v2"),
    (["inspect"], 0, "native-int8"),
    (["verify"], 0, "ok: every file is the one that the manifest describes"),
    (["doctor"], 0, "no problem was found"),
    (["doctor", "--quick"], 0, "pip install 'firstvec[onnx]'        runs the ONNX artifacts"),
    (["bench", "--rounds", "1", "--quiet"], 0, "firstvec native-int8"),
    (["encode", "--format", "npy", "text"], 1, "pip install 'firstvec[numpy]'; or take output='list' or 'buffer'"),
    (
        ["encode", "--precision", "int8", "text"],
        1,
        "needs numpy, which is not installed: pip install 'firstvec[numpy]'",
    ),
    (["encode", "--artifact", "onnx-fp32", "text"], 1, "The bundle has no artifact 'onnx-fp32'"),
    (["--help"], 1, "pip install 'firstvec[cli]'"),
)
"""Command line, exit code, and a part of what is printed, where nothing but firstvec is installed."""


@needs_compiler
def test_firstvec_and_an_int8_bundle_are_two_packages_of_30_mb_and_serve_every_command(
    wheel: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest app: no numpy, no onnxruntime, no tokenizers. README's quick start and all commands work."""
    pack([*("wheel", "--model", str(bundle), "--only", "native-int8"), *("--output", str(tmp_path / "bundle"))])
    [packed] = (tmp_path / "bundle").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    # Without an index, pip fails if it needs another package.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--isolated"]
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    assert len([*site.glob("*.dist-info")]) == 1
    subprocess.run([*pip, str(packed)], check=True, capture_output=True)
    assert len([*site.glob("*.dist-info")]) == 2
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert 20e6 < size <= 30e6

    text = tmp_path / "text.txt"
    text.write_text("when is the office closed?\nhow do I reset my password?\n", "utf-8")
    monkeypatch.delenv("FIRSTVEC_ARTIFACTS")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    for arguments, code, part in COMMANDS:
        command = [str(tmp_path / "venv/bin/firstvec"), *(each.format(text=text) for each in arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, part in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    quick_start = """
from firstvec import LoadingStrategy, MissingDependency, OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader("all-MiniLM-L6-v2", LoadingStrategy.QUANTIZED)
print(loader.get_embedding_dim_fast())
provider = loader.get_provider(timeout=10)
try:
    provider.encode(["one text", "another"])
except MissingDependency as error:
    print(error.install)
print(len(provider.encode(["one text", "another"], output="list")))
from firstvec.compat import SentenceTransformer
try:
    SentenceTransformer("all-MiniLM-L6-v2", strategy="quantized")
except MissingDependency as error:
    print(error.install)
"""
    done = subprocess.run([python, "-c", quick_start], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["384", "firstvec[numpy]", "2", "firstvec[numpy]"]
    assert done.stderr == ""


@needs_compiler
def test_a_bundle_that_only_onnxruntime_serves_names_the_extra_where_it_is_missing(
    wheel: Path, bundle: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    pack([*("wheel", "--model", str(bundle), "--only", "onnx-fp32"), *("--output", str(tmp_path / "bundle"))])
    [packed] = (tmp_path / "bundle").glob("*.whl")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "installed")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from firstvec.commands.main import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "FIRSTVEC_ARTIFACTS"}
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "installed")]
    done = subprocess.run([*command, "encode", "text"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[1:] == [
        "  - onnx-fp32: onnxruntime: not installed",
        "Install onnxruntime (`pip install 'firstvec[onnx]'`).",
    ]
    done = subprocess.run([*command, "doctor"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "no strategy can take an artifact on this machine" in done.stdout
    assert "pip install 'firstvec[onnx]'" in done.stdout


def pack(arguments: list[str]) -> None:
    command = [str(Path(sys.executable).with_name("firstvec")), *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_off_asks_for_a_pure_wheel(tmp_path: Path) -> None:
    wheel, printed = build_wheel(tmp_path, FIRSTVEC_NATIVE="off")
    assert_is_pure(wheel)
    assert "needs onnxruntime: pip install 'firstvec[onnx]'" in printed
    assert "FIRSTVEC_NATIVE=off" in printed
    assert read(wheel, NOTE).decode() in printed


def test_without_a_compiler_the_wheel_is_pure_and_says_how_to_get_the_engine(
    tmp_path: Path, nowhere: dict[str, str]
) -> None:
    wheel, printed = build_wheel(tmp_path, **nowhere)
    assert_is_pure(wheel)
    assert "no C compiler was found" in printed
    assert "needs onnxruntime: pip install 'firstvec[onnx]'" in printed
    assert "apt-get install gcc" in printed
    assert read(wheel, NOTE).decode() in printed


@pytest.mark.parametrize(("compiler", "reason"), [("no-such-compiler", "cannot be run"), ("false -x", "false -x")])
def test_a_compiler_that_fails_gives_a_pure_wheel_with_the_reason(tmp_path: Path, compiler: str, reason: str) -> None:
    wheel, printed = build_wheel(tmp_path, CC=compiler)
    assert_is_pure(wheel)
    assert reason in printed
    done = hatchling(f"backend.build_wheel({str(tmp_path)!r})", check=False, CC=compiler, FIRSTVEC_NATIVE="required")
    assert done.returncode != 0
    assert reason in done.stdout + done.stderr


def test_a_module_that_cannot_be_imported_is_left_out(tmp_path: Path) -> None:
    """A compiler can say that all is well, and write something else."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do [ "$before" = -o ] && echo no module > "$last"; before=$last; done\n')
    compiler.chmod(0o755)
    wheel, printed = build_wheel(tmp_path, CC=str(compiler))
    assert_is_pure(wheel)
    assert "ImportError" in printed


def test_missing_headers_of_python_are_named(tmp_path: Path, nowhere: dict[str, str]) -> None:
    Path(nowhere["PYTHONPATH"], "sitecustomize.py").write_text(
        "import sysconfig\nreal = sysconfig.get_path\n"
        "sysconfig.get_path = lambda name, *rest: '/nowhere' if name == 'include' else real(name, *rest)\n"
    )
    wheel, printed = build_wheel(tmp_path, PYTHONPATH=nowhere["PYTHONPATH"])
    assert_is_pure(wheel)
    assert "/nowhere/Python.h" in printed
    assert requirements(**nowhere) == []


def test_without_the_engine_the_tests_of_the_runtime_pass(
    bundle: Path, tiny_built: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A second run of the runtime's tests, with a pure wheel. The tests of the native engine are skipped there."""
    wheel, _ = build_wheel(tmp_path, FIRSTVEC_NATIVE="off")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    # What notices the engine's absence
    places = ["engines", "loading", "text/test_tokenizer.py", "commands/test_doctor.py", "commands/test_explain.py"]
    places += ["test_loader.py", "test_provider.py", "test_fresh_process.py"]
    if request.config.getoption("--faults"):
        places = [""]  # all tests of the runtime
    tests = [f"tests/runtime/{each}" for each in places]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        check=False,
        cwd=bundle.parents[1],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "FIRSTVEC_TEST_BUNDLE": str(tiny_built)},
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "firstvec is installed without the native engine" in done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 500


def test_another_value_of_the_variable_is_refused() -> None:
    done = hatchling("backend.build_wheel('.')", check=False, FIRSTVEC_NATIVE="yes")
    assert done.returncode != 0
    assert "FIRSTVEC_NATIVE is 'yes': it can be off, required, " in done.stdout + done.stderr


def requirements(**environment: str) -> list[str]:
    """Return what the build asks pip for, hatchling apart."""
    done = hatchling("print(json.dumps(backend.get_requires_for_build_wheel()))", **environment)
    packages: list[str] = json.loads(done.stdout)
    return packages


@pytest.mark.skipif(
    native.find_obstacle() is not None or platform.machine() not in ("x86_64", "aarch64", "arm64"),
    reason="the package ziglang is of no use here",
)
def test_the_compiler_package_is_asked_for_only_where_it_helps(nowhere: dict[str, str]) -> None:
    [asked] = requirements(**nowhere)
    assert asked.startswith("ziglang")
    assert requirements(**nowhere, FIRSTVEC_NATIVE="off") == []
    assert requirements(**nowhere, CC="no-such-compiler") == []
    assert requirements(FIRSTVEC_NATIVE="musllinux_1_2_aarch64") == [asked]
    too_old = Path(nowhere["PATH"], "cc")
    too_old.write_text("#!/bin/sh\necho 'unrecognized option' >&2\nexit 1\n")
    too_old.chmod(0o755)
    assert requirements(**nowhere) == [asked]


@needs_compiler
def test_a_compiler_of_the_system_is_enough() -> None:
    assert requirements() == []


@needs_compiler
def test_an_editable_install_compiles_in_place_and_leaves_a_plain_path(unpacked: Path, tmp_path: Path) -> None:
    code, package = f"backend.build_editable({str(tmp_path)!r})", unpacked / "runtime"
    hatchling(code, root=unpacked, FIRSTVEC_NATIVE="required")
    [wheel] = tmp_path.glob("*.whl")
    assert (package / MODULE).is_file()
    assert not (package / NOTE).exists()
    [path] = [name for name in contents(wheel) if name.endswith(".pth")]
    assert read(wheel, path).decode().splitlines() == [str(unpacked / "build_tools"), str(package)]
    assert MODULE not in contents(wheel)

    hatchling(code, root=unpacked, FIRSTVEC_NATIVE="off")
    assert not (package / MODULE).exists()
    assert "FIRSTVEC_NATIVE=off" in (package / NOTE).read_text("utf-8")
    assert MODULE not in contents(build_wheel_of(unpacked, tmp_path / "pure"))


def build_wheel_of(root: Path, folder: Path) -> Path:
    folder.mkdir()
    hatchling(f"backend.build_wheel({str(folder)!r})", root=root, FIRSTVEC_NATIVE="off")
    [wheel] = folder.glob("*.whl")
    return wheel


def test_a_wheel_for_another_platform_needs_the_compiler_package(tmp_path: Path, nowhere: dict[str, str]) -> None:
    done = hatchling(
        f"backend.build_wheel({str(tmp_path)!r})", check=False, **nowhere, FIRSTVEC_NATIVE="musllinux_1_2_aarch64"
    )
    assert done.returncode != 0
    assert "ziglang" in done.stdout + done.stderr


def test_a_wheel_for_another_platform_has_its_tag_and_its_old_glibc(tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="make wheels installs it")
    wheel, _ = build_wheel(tmp_path, FIRSTVEC_NATIVE="manylinux_2_17_aarch64.manylinux2014_aarch64")
    assert {tag.platform for tag in tags(wheel)} == {"manylinux_2_17_aarch64", "manylinux2014_aarch64"}
    module = read(wheel, MODULE)
    assert module[:4] == b"\x7fELF"
    assert int.from_bytes(module[18:20], "little") == 183  # EM_AARCH64: ELF for the Arm 64-bit Architecture
    assert b"GLIBC_2.17" in module
