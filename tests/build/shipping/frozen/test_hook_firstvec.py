"""Apps that PyInstaller freezes in a fresh environment, each run in a fresh process, beside the same app unfrozen."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.native.compiling import run

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(shutil.which("objdump") is None, reason="PyInstaller needs objdump (Debian's binutils)"),
    pytest.mark.skipif(not sysconfig.get_config_var("Py_ENABLE_SHARED"), reason="PyInstaller needs a libpython.so"),
]

PROGRAM = """
import json, os, sys
from importlib.util import find_spec
import firstvec

for name in firstvec.__all__:
    getattr(firstvec, name)
assert firstvec.ModelMetadata.from_cache("all-MiniLM-L6-v2").embedding_dim == 384
options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
loader = firstvec.OptimizedEmbeddingLoader("all-MiniLM-L6-v2", enable_quantization=True, output="buffer", **options)
loader.start_loading()
vector = bytes(loader.get_provider().embed_query("how do I reset my password?"))
child = os.fork()
if not child:
    os._exit(bytes(loader.get_provider().embed_query("how do I reset my password?")) != vector)
forked = os.waitpid(child, 0)[1]
names = "firstvec_build numpy onnxruntime.capi.onnxruntime_inference_collection tokenizers torch tqdm transformers"
frozen = getattr(sys, "frozen", False)
there = [name for name in names.split() if frozen and find_spec(name.partition(".")[0]) and find_spec(name)]
engines = dict(firstvec.ResourceProfile.detect().engines)
print(json.dumps({**loader.report(), "vector": vector.hex(), "fork": forked, "there": there, "engines": engines}))
"""
UNKNOWN_UID = 54321


class Freezing:
    """A fresh environment with firstvec's wheel, the wheel of a bundle with the native INT8 artifact, and PyInstaller.

    Args:
        folder: where it is made. Other users can read it.
        bundle: the bundle to pack.
    """

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder = folder
        self.python = folder / "venv/bin/python"
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM, "utf-8")
        run([sys.executable, "-m", "venv", str(folder / "venv")])
        wheels = folder / "wheels"
        build = f"from hatchling import build; build.build_wheel({str(wheels)!r})"
        run([sys.executable, "-c", build], cwd=REPOSITORY)
        firstvec = Path(sys.executable).with_name("firstvec")
        run([str(firstvec), "wheel", "--model", str(bundle), "--only", "native-int8", "--output", str(wheels)])
        groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
        self.install(*groups["frozen"], *map(str, wheels.glob("*.whl")))

    def install(self, *packages: str) -> None:
        """Install packages of the pinned versions."""
        constraints = str(REPOSITORY / "constraints.txt")
        run([str(self.python), "-m", "pip", "install", "--quiet", "--constraint", constraints, *packages])

    def freeze(self, *options: str) -> Path:
        """Freeze the program, and return the executable."""
        command = [str(self.python), "-m", "PyInstaller", "--log-level", "ERROR", "--noconfirm", "--clean"]
        run([*command, *options, str(self.program)], cwd=self.folder)
        built = self.folder / "dist" / "program"
        return built / "program" if built.is_dir() else built


def start(*command: object, user: int | None = None, **environment: str) -> dict[str, Any]:
    """Run the program in an environment of these variables only, and return what it prints."""
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd="/",
        user=user,
        group=user,
        extra_groups=[] if user is not None else None,
        env={"PATH": os.defpath, **environment},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def files_of(folder: Path) -> list[str]:
    """Return the files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module")
def freezing(bundle: Path) -> Iterator[Freezing]:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Freezing(Path(name), bundle)


@pytest.fixture(scope="module")
def unfrozen(freezing: Freezing) -> dict[str, Any]:
    """What the program prints where it is not frozen."""
    return start(freezing.python, freezing.program, FIRSTVEC_CACHE=str(freezing.folder / "cache"))


def test_a_one_file_app_verifies_at_each_start_and_leaves_nothing(
    freezing: Freezing, unfrozen: dict[str, Any], bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    app = freezing.freeze("--onefile")
    assert unfrozen["artifact"] == "native-int8"
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    places = {"FIRSTVEC_CACHE": str(cache), "TMPDIR": str(temporary)}
    left = []
    for _ in range(20 if request.config.getoption("--faults") else 3):
        done = start(app, **places)
        assert [done[key] for key in ("vector", "engine", "fork")] == [unfrozen["vector"], unfrozen["engine"], 0]
        assert (done["verification"], done["there"]) == ("hashed now", [])
        left.append((files_of(cache), files_of(temporary)))
    # The passed self-test counts for every copy of the files.
    assert [Path(file).parent.name for file in left[0][0]] == ["self-tested"]
    assert left == [(left[0][0], [])] * len(left)
    # A bundle outside of the file stays where it is, so that it is verified once.
    beside = {**places, "FIRSTVEC_ARTIFACTS": str(bundle.parent)}
    assert [start(app, **beside)["verification"] for _ in range(2)] == ["hashed now", "remembered"]


def test_a_folder_app_remembers_and_uses_the_c_api_of_onnxruntime(
    freezing: Freezing, unfrozen: dict[str, Any], bundle: Path, tmp_path: Path
) -> None:
    freezing.install("--no-deps", "onnxruntime")
    app = freezing.freeze()
    cache = str(tmp_path / "cache")
    found = [start(app, FIRSTVEC_CACHE=cache) for _ in range(2)]
    for done in found:
        assert [done[key] for key in ("vector", "engine", "fork")] == [unfrozen["vector"], unfrozen["engine"], 0]
        assert done["there"] == []
    assert [done["verification"] for done in found] == ["hashed now", "remembered"]

    # The whole bundle has artifacts for onnxruntime, too.
    kind = "avx2" if platform.machine() == "x86_64" else "arm64"
    arguments = json.dumps({"artifact": f"onnx-int8-{kind}"})
    places = {"FIRSTVEC_CACHE": cache, "FIRSTVEC_ARTIFACTS": str(bundle.parent)}
    done = start(app, arguments, **places)
    expected = start(freezing.python, freezing.program, arguments, **places)
    assert [done[key] for key in ("vector", "engine")] == [expected[key] for key in ("vector", "engine")]
    assert done["engine"].endswith("(C API)")
    assert done["engine"].split()[1] == done["engines"]["onnxruntime"]
    assert done["there"] == []

    # Somebody who has no home, and may write nowhere but in the folder for temporary files.
    temporary = freezing.folder / "temporary"
    temporary.mkdir()
    temporary.chmod(0o1777)
    user = UNKNOWN_UID if os.geteuid() == 0 else None
    before = files_of(app.parent)
    for verification in ("hashed now", "remembered"):
        done = start(app, user=user, TMPDIR=str(temporary), **({} if user else {"HOME": "/dev/null"}))
        assert (done["vector"], done["verification"]) == (unfrozen["vector"], verification)
    assert files_of(app.parent) == before
