"""docsearch in the forms in which an app is shipped, made and run as docs/frozen.md says."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import REPOSITORY

DOCKERFILE = REPOSITORY / "examples/docsearch/Dockerfile"
LAMBDA = 250_000_000
"""Bytes that a function may have on AWS Lambda, unpacked."""
NOBODY = 65534
QUERY = "convert binary data to printable text"


@pytest.fixture(scope="module")
def ship() -> Any:
    """The script that builds the forms: `make bench-ship` measures them with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        return importlib.import_module("shipped_forms")


@pytest.fixture(scope="module")
def shop(ship: Any, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A workshop with wheels, and with an index of 400 docstrings."""
    made = ship.Workshop(tmp_path_factory.mktemp("ship") / "work", bundle)
    made.make_wheels()
    return made


def search(form: Any, query: str = QUERY, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [query if word == QUERY else word for word in form.command]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=form.environment | environment
    )


def verification(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["name"].startswith(("base64.", "binascii."))
    [line] = [line for line in done.stderr.splitlines() if line.startswith("{")]
    trace = json.loads(line)
    assert trace["artifact"] == "native-int8"
    found: str = trace["verification"]
    return found


@pytest.mark.native
@pytest.mark.parametrize("name", ["shiv", "pex", "pex-venv"])
def test_a_file_of_a_packer_unpacks_its_bundle_once_and_verifies_it_once(
    name: str, ship: Any, shop: Any, request: pytest.FixtureRequest
) -> None:
    if name != "shiv" and not request.config.getoption("--faults"):
        pytest.skip("make faults runs it")
    form = ship.FORMS[name](shop)
    form.forget()
    assert verification(search(form, FIRSTVEC_TRACE="1")) == "hashed now"
    [model] = form.home.rglob("model_qint8.fvw")
    before = model.stat()
    assert verification(search(form, FIRSTVEC_TRACE="1")) == "remembered"
    assert model.stat().st_ino == before.st_ino
    assert model.stat().st_ctime_ns == before.st_ctime_ns
    with open(model, "r+b") as file:  # what the packer unpacked is changed
        file.seek(100_000)
        file.write(b"\0" * 64)
    done = search(form)
    assert done.returncode == 1
    assert "is not the file that was built" in done.stderr
    assert "Traceback" not in done.stderr
    form.forget()


@pytest.mark.native
@pytest.mark.parametrize(
    ("name", "next_start"),
    [("pyinstaller", "remembered"), ("pyinstaller-file", "hashed now"), ("pyinstaller-beside", "remembered")],
)
def test_a_frozen_app_finds_its_bundle(
    name: str, next_start: str, ship: Any, shop: Any, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--faults"):
        pytest.skip("make faults runs it, and make test runs tests/build/shipping/frozen")
    if shutil.which("objdump") is None or not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("PyInstaller needs objdump (Debian's binutils) and a libpython.so")
    form = ship.FORMS[name](shop)
    form.forget()
    found = [verification(search(form, FIRSTVEC_TRACE="1")) for _ in range(2)]
    assert found == ["hashed now", next_start]


@pytest.mark.native
@pytest.mark.parametrize("linked", ["bundle", "package"])
def test_a_bundle_that_pex_links_from_its_cache_is_used(
    linked: str, shop: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The bundle's own wheel, and a bundle in a folder of the app's package."""
    if not request.config.getoption("--faults"):
        pytest.skip("make faults runs it")
    dist = shop.folder / "dist"
    if linked == "package":
        unpacked, source = tmp_path / "unpacked", tmp_path / "source"
        [wheel] = dist.glob("firstvec_bundle*.whl")
        shutil.unpack_archive(wheel, unpacked, "zip")
        [packed] = (unpacked / "firstvec_bundles").iterdir()
        shutil.copytree(packed, source / "docsearch/bundle")
        shutil.copy(REPOSITORY / "examples/docsearch/docsearch.py", source / "docsearch/__init__.py")
        project = (REPOSITORY / "examples/docsearch/pyproject.toml").read_text("utf-8")
        project = project.replace('only-include = ["docsearch.py"]', 'packages = ["docsearch"]')
        (source / "pyproject.toml").write_text(project, "utf-8")
        dist = tmp_path / "dist"
        shop.run(f"pip wheel --no-deps --wheel-dir {dist} {source}")
        [runtime] = (shop.folder / "dist").glob("firstvec-*.whl")
        shutil.copy(runtime, dist)
    pack = f"pex --output-file {tmp_path}/app.pex --console-script docsearch --no-index {dist}/*.whl"
    shop.run(f"{pack} --venv prepend --venv-site-packages-copies")
    form = shop.form(f"linked {linked}", tmp_path / "app.pex", shop.search(tmp_path / "app.pex"))
    form.forget()
    assert verification(search(form, FIRSTVEC_TRACE="1")) == "hashed now"
    assert {each.stat().st_nlink for each in form.home.rglob("model_qint8.fvw")} == {2}
    assert verification(search(form, FIRSTVEC_TRACE="1")) == "remembered"


# The function


class Task(NamedTuple):
    """A program in a folder into which its user cannot write."""

    folder: Path
    command: list[str]
    options: dict[str, Any]
    """Of `subprocess.run`: the user."""

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd="/",
            env={"PATH": os.defpath, "PYTHONPATH": str(self.folder)} | environment,
            **self.options,
        )


def another_user() -> tuple[str, dict[str, Any]]:
    """Return an interpreter, and the options with which a user without rights runs it. Skip the test without one."""
    options: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if not subprocess.run(check, check=False, cwd="/", **options).returncode:
                return python, options
        except OSError:
            continue
    pytest.skip("another user can run no Python from 3.11 here")


@contextmanager
def read_only_copy(folder: Path) -> Iterator[Path]:
    """Copy a folder to where another user can read it, and nobody can write."""
    with tempfile.TemporaryDirectory(prefix="firstvec-ship-") as outer:
        copy = Path(shutil.copytree(folder, Path(outer, folder.name)))
        paths = [Path(outer), copy, *copy.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield copy
        for path in paths:
            path.chmod(0o755)


@pytest.fixture(scope="module")
def function(ship: Any, shop: Any) -> Any:
    """The function's form."""
    return ship.make_function(shop)


@pytest.fixture(scope="module")
def task(function: Any) -> Iterator[Task]:
    """The function as another user runs it."""
    python, options = another_user()
    with read_only_copy(function.ships) as folder:
        yield Task(folder, [python, *function.command[1:]], options)


@pytest.mark.native
def test_a_function_needs_no_home_and_writes_nothing(task: Task, ship: Any) -> None:
    assert ship.size(task.folder) < 32_000_000 < LAMBDA
    before = {path: path.stat().st_mtime_ns for path in task.folder.rglob("*")}
    places = ({}, {"HOME": "/nonexistent"}, {"HOME": str(task.folder)}, {"FIRSTVEC_CACHE": f"{task.folder}/cache"})
    for place in places:
        assert verification(task.run(FIRSTVEC_TRACE="1", **place)) == "hashed now"
    assert {path: path.stat().st_mtime_ns for path in task.folder.rglob("*")} == before
    with tempfile.TemporaryDirectory(prefix="firstvec-cache-") as cache:
        os.chmod(cache, 0o777)
        found = [verification(task.run(FIRSTVEC_TRACE="1", FIRSTVEC_CACHE=f"{cache}/own")) for _ in range(2)]
    assert found == ["hashed now", "remembered"]


@pytest.mark.native
def test_the_bytecode_of_an_unpacked_zip_file_is_used(task: Task) -> None:
    """A zip file keeps no exact times. Bytecode that depends on them would be compiled again at every start."""
    done = task._replace(command=[task.command[0], "-v", *task.command[1:]]).run()
    assert done.returncode == 0, done.stderr
    folder = re.escape(f"{task.folder}/")
    assert len(re.findall(rf"^# code object from '{folder}.*\.pyc'$", done.stderr, re.MULTILINE)) > 20
    assert re.findall(rf"^# code object from {folder}.*\.py$", done.stderr, re.MULTILINE) == []


@pytest.mark.native
@pytest.mark.parametrize(
    ("event", "status", "message"),
    [
        ({}, 400, "an event needs a query"),
        ({"query": 5}, 400, "an event needs a query"),
        ({"query": "text", "top": 0}, 400, "may have top"),
        ({"query": " "}, 400, "the query is empty"),
        ({"query": "parse arguments", "top": 2}, 200, "score"),
    ],
)
def test_a_function_answers_every_event(event: dict[str, Any], status: int, message: str, function: Any) -> None:
    code = "import json, sys, handler; print(json.dumps(handler.handler(json.loads(sys.argv[1]), None)))"
    command = [function.command[0], "-c", code, json.dumps(event)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=function.environment)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["statusCode"] == status
    assert message in answer["body"]


# The image


class Stage:
    """A stage of a Dockerfile: a folder in place of an image's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir()
        self.arguments: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.user = "root"
        self.entrypoint: list[str] = []
        self.default: list[str] = []
        self.commands: list[str] = []

    def inside(self, text: str) -> str:
        """Return the text with the paths of the image as paths below the folder."""
        return re.sub(r"(?<![\w./])/(?=(?:app|dist|tmp)\b)", f"{self.root}/", text)


def build_image(context: Path, folder: Path, programs: Path, **arguments: str) -> Stage:
    """Take the Dockerfile's steps in folders, and return the last stage.

    Args:
        context: the folder that COPY copies from.
        folder: an empty folder for the stages.
        programs: the folder of the commands ``python`` and ``pip``.
        arguments: values of ARG.
    """
    stages: dict[str, Stage] = {}
    text = re.sub(r"^#.*\n|\\\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)
    for line in filter(None, text.splitlines()):
        step, _, rest = line.partition(" ")
        if step == "FROM":
            image, _, name = rest.partition(" AS ")
            assert re.fullmatch(r"python:3\.1[1-9]-slim", image)
            stages[name] = stage = Stage(folder / (name or "last"))
        elif step == "ARG":
            name, _, default = rest.partition("=")
            stage.arguments[name] = arguments.get(name, default)
        elif step == "COPY":
            words = rest.split()
            source = context
            if words[0].startswith("--from="):
                source = stages[words.pop(0).removeprefix("--from=")].root
            shutil.copytree(source / words[0].lstrip("/"), stage.root / words[1].lstrip("/"))
        elif step == "RUN":
            stage.commands.append(rest)
            environment = {"PATH": f"{programs}:{os.defpath}", "HOME": str(stage.root / "root")}
            environment |= stage.arguments | stage.environment
            command = ["sh", "-c", stage.inside(rest)]
            done = subprocess.run(command, env=environment, cwd=stage.root, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        elif step == "ENV":
            stage.environment |= dict(word.split("=", 1) for word in shlex.split(stage.inside(rest)))
        elif step == "USER":
            stage.user = rest
        elif step == "ENTRYPOINT":
            stage.entrypoint = [stage.inside(word) for word in json.loads(rest)]
        else:
            assert step == "CMD", f"this test does not know {step}"
            stage.default = json.loads(rest)
    return stage


@pytest.fixture(scope="module")
def image(shop: Any, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The Dockerfile's last stage, with an index of 400 docstrings."""
    folder = tmp_path_factory.mktemp("image")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    pip = f'#!/bin/sh\nexec {sys.executable} -m pip --python {folder}/venv/bin/python "$@"\n'
    (folder / "venv/bin/pip").write_text(pip, "utf-8")
    (folder / "venv/bin/pip").chmod(0o755)
    (folder / "stages").mkdir()
    return build_image(shop.folder, folder / "stages", folder / "venv/bin", ENTRIES="400")


@pytest.mark.native
def test_the_image_answers_as_another_user_without_anything_to_write_to(image: Stage) -> None:
    assert image.user == f"{NOBODY}:{NOBODY}"
    assert image.commands == []  # the last stage holds what the first one made, and no tool
    assert {path.name for path in image.root.iterdir()} == {"app"}
    python, options = another_user()
    with read_only_copy(image.root) as root:

        def there(text: str) -> str:
            return text.replace(str(image.root), str(root))

        command = [python, *map(there, image.entrypoint[1:]), *image.default]
        environment = {name: there(value) for name, value in image.environment.items()}
        assert environment.pop("PYTHONPATH") == str(root / "app")
        done = Task(root / "app", command, options).run(**environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 10
        command[-1:] = [QUERY, "--json"]
        assert verification(Task(root / "app", command, options).run(FIRSTVEC_TRACE="1", **environment)) == "hashed now"
        assert {path.name for path in root.iterdir()} == {"app"}


# The page


def test_the_page_has_the_commands_that_build_the_forms(ship: Any) -> None:
    page = (REPOSITORY / "docs/frozen.md").read_text("utf-8").splitlines()
    frozen = (*ship.FREEZING, *ship.FROZEN, *ship.ONE_FILE, *ship.BESIDE)
    for command in (*ship.WHEELS, *ship.SHIV, *ship.PEX, *ship.PEX_VENV, *ship.FUNCTION, *frozen):
        assert command in page, command
