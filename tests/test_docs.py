"""The documents: the site builds without a warning, and every fenced block of README.md and of the site runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

import firstvec
from firstvec.commands.app import make_app
from tests.conftest import REPOSITORY

PAGES_FROM_ELSEWHERE = {
    "artifacts/FORMAT.md": "format.html",
    "SECURITY.md": "security.html",
    "CHANGELOG.md": "changelog.html",
    "CONTRIBUTING.md": "contributing.html",
    "benchmarks/README.md": "how-it-is-measured.html",
    "examples/docsearch/README.md": "docsearch.html",
}
DOCUMENTS = ["README.md", *PAGES_FROM_ELSEWHERE]
DOCUMENTS += sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").glob("*.md"))

_BUILD = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"the build makes a request: {event} {arguments}")

sys.addaudithook(refuse)
from mkdocs.__main__ import cli
cli(["build", "--strict", "--site-dir", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it, without a network. A warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_the_navigation_is_built(site: Path) -> None:
    pages = re.findall(r"- .*: ([\w-]+)\.md$", (REPOSITORY / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert len(pages) > 15
    for page in pages:
        assert "<article" in (site / f"{page}.html").read_text("utf-8"), page


def test_diagrams_are_left_to_mermaid(site: Path) -> None:
    for document in (REPOSITORY / "docs").glob("*.md"):
        diagrams = document.read_text("utf-8").count("\n```mermaid\n")
        assert (site / f"{document.stem}.html").read_text("utf-8").count('<pre class="mermaid">') == diagrams


@pytest.mark.parametrize(("document", "page"), PAGES_FROM_ELSEWHERE.items())
def test_documents_that_lie_elsewhere_are_pages(document: str, page: str, site: Path) -> None:
    title = (REPOSITORY / document).read_text("utf-8").partition("\n")[0].removeprefix("# ")
    assert re.search(rf"<h1[^>]*>{re.escape(title)}<", (site / page).read_text("utf-8"))


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    """No page names a script, style, font or picture of another host.

    The theme's own script fetches mermaid for a page that has a diagram. Without a network such a page shows the
    diagram's text.
    """
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text("utf-8")):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), (page.name, tag)


def test_the_command_line_page_has_every_command_and_option(site: Path) -> None:
    page = (site / "command-line.html").read_text("utf-8")
    commands = typer.main.get_command(make_app()).commands
    assert len(commands) >= 10
    for name, command in commands.items():
        section = page.partition(f'<h3 id="firstvec-{name}">')[2].partition("<h3")[0]
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in section, (name, option)


def test_the_api_page_has_every_public_name(site: Path) -> None:
    page = (site / "python-api.html").read_text("utf-8")
    for name in firstvec.__all__:
        assert f'id="firstvec.{name}"' in page or f'id="firstvec.errors.{name}"' in page, name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_no_machine_and_no_registry(document: str) -> None:
    text = (REPOSITORY / document).read_text("utf-8")
    for place in ("/work/", "/root/", "/home/", "/tmp/", "pypi.org", "huggingface.co"):
        assert place not in text, place


# Blocks


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    text: str
    line: int
    continues: bool
    """Whether the block has ``<!-- continues -->`` before it, because it needs the files of the previous block."""


class Chain(NamedTuple):
    """Blocks that run one after another in one folder."""

    document: str
    blocks: list[Block]

    def __str__(self) -> str:
        return f"{self.document}:{self.blocks[0].line}"


_FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_SHELL = ("", "sh", "bash", "console")
_PROGRAMS = ("make", "firstvec", "python", "pip", "openssl", "export", "cp", "for")
"""A block without a language is for the shell if each of its lines begins with one of these."""


def blocks_of(text: str) -> Iterator[Block]:
    for fence in _FENCE.finditer(text):
        indent, language, body = fence.groups()
        before = text[: fence.start()].rstrip()
        if language == "" and is_for_the_shell(body):
            language = "sh"
        yield Block(
            language=language,
            text="".join(line.removeprefix(indent) for line in body.splitlines(keepends=True)),
            line=text.count("\n", 0, fence.start()) + 1,
            continues=before.endswith("<!-- continues -->"),
        )


def is_for_the_shell(text: str) -> bool:
    return all(line.partition(" ")[0].rpartition("/")[2] in _PROGRAMS for line in text.splitlines())


def chains() -> list[Chain]:
    found: list[Chain] = []
    for document in DOCUMENTS:
        for block in blocks_of((REPOSITORY / document).read_text("utf-8")):
            if block.continues:
                assert found, "there is no block before it"
                assert found[-1].document == document, "the block before it is in another document"
                found[-1].blocks.append(block)
            else:
                found.append(Chain(document, [block]))
    return found


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """A folder like the repository's, with the files that the documents name."""
    root = tmp_path / "project"
    shutil.copytree(REPOSITORY / "examples", root / "examples")
    (root / ".venv").symlink_to(sys.prefix)
    (root / "artifacts").mkdir()
    (root / "artifacts" / bundle.name).symlink_to(bundle)
    for name in ("texts.txt", "a-million-lines.txt"):
        (root / name).write_text("how do I reset my password?\nAnother line.\n", "utf-8")
    return root


@pytest.mark.parametrize("chain", chains(), ids=str)
def test_blocks_run(chain: Chain, folder: Path, bundle: Path) -> None:
    if any("firstvec sign" in block.text for block in chain.blocks):
        copy = folder / "artifacts" / bundle.name  # the signature must not lie in the bundle of all tests
        copy.unlink()
        shutil.copytree(bundle, copy)
    program = ""
    for block, following in zip(chain.blocks, [*chain.blocks[1:], None], strict=True):
        if block.language == "python":
            program += block.text
            if following is None or following.language != "python":
                run([sys.executable, "-c", program], folder)
                program = ""
        elif block.language in _SHELL and block.language:
            run_shell(block, folder)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "mermaid":
            assert block.text.split()[0] in ("flowchart", "gantt", "sequenceDiagram", "stateDiagram-v2")
        else:
            assert block.language in ("", "text"), f"{block.language}: this test cannot run it"


def run(command: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {
        # Hosts of the adapters would send telemetry.
        "ANONYMIZED_TELEMETRY": "False",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "FIRSTVEC_ARTIFACTS": str(folder / "artifacts"),
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def run_shell(block: Block, folder: Path) -> None:
    """Run a block line by line. Of commands that take long, only the spelling is checked."""
    lines = [line for line in commands_of(block) if not is_long_and_right(line)]
    if lines:
        run(["bash", "-c", "\n".join(["set -euo pipefail", *lines])], folder)


def commands_of(block: Block) -> Iterator[str]:
    """Yield the commands of a block. If a line begins with ``$``, the lines without ``$`` are output."""
    has_prompts = any(line.startswith("$ ") for line in block.text.splitlines())
    command = ""
    for line in block.text.splitlines():
        if command:
            command += f"\n{line}"
        elif has_prompts:
            command = line[2:] if line.startswith("$ ") else ""
        else:
            command = line
        if command.strip() and not command.endswith("\\") and is_whole(command):
            yield command
            command = ""
    assert not command.strip(), f"the command does not end: {command}"


def is_whole(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:  # a quotation that does not end in this line
        return False
    return True


# Commands that take long


def is_long_and_right(line: str) -> bool:
    """Return whether a command takes too long for this test, or needs a network.

    Fail if its target, option or extra does not exist.
    """
    words = shlex.split(line, comments=True)
    while words and re.match(r"\w+=", words[0]):
        words.pop(0)
    if not words:
        return False
    program = words[0].rpartition("/")[2]
    if program == "make":
        check_make(words[1:])
    elif program == "pip":
        check_pip(words[1:])
    elif program == "firstvec" and words[1] in ("build", "push", "pull"):
        check_command(words[1:])
    elif program == "python" and words[1].endswith(".py"):
        check_script(words[1], words[2:])
    else:
        return False
    return True


def check_make(arguments: list[str]) -> None:
    command = ["make", "--dry-run", "--directory", str(REPOSITORY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    assert arguments.pop(0) == "install"
    while arguments:
        argument = arguments.pop(0)
        if argument in ("-c", "--constraint"):
            assert (REPOSITORY / arguments.pop(0)).is_file()
        elif argument == "--group":
            assert arguments.pop(0) in project["dependency-groups"]
        elif argument == "--find-links":
            assert arguments.pop(0) == "dist"  # of `make wheels`
        elif argument not in ("-e", "--editable", "--upgrade", "--no-index"):
            named = re.fullmatch(r"(?:firstvec|\.)(?:\[([\w,-]+)\])?", argument)
            assert named, argument
            assert {*(named[1] or "").split(",")} - {""} <= {*project["project"]["optional-dependencies"]}


def check_command(arguments: list[str]) -> None:
    # An unknown option ends the command before --help does.
    command = [str(Path(sys.executable).with_name("firstvec")), *arguments, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def check_script(script: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True
    )
    words = [argument.partition("=")[0] for argument in arguments]
    shown = done.stdout
    for command in re.findall(r"\{([\w,-]+)\}", shown)[:1]:  # subcommands have help texts of their own
        if words and words[0] in command.split(","):
            more = [sys.executable, script, words[0], "--help"]
            shown += subprocess.run(more, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for word in words:
        assert not word.startswith("--") or word in shown, f"{script} has no option {word}"


@pytest.mark.parametrize(
    ("line", "is_long"),
    [
        ("make test", True),
        ("STS=x make bench-sts STS=path/of/sts-test.csv  # long", True),
        (".venv/bin/pip install -c constraints.txt -e '.[build]'", True),
        ("pip install --no-index --find-links dist firstvec", True),
        ("firstvec build NAME==VERSION --sha256 DIGEST", True),
        (".venv/bin/python benchmarks/cold_start.py --rounds 5", True),
        ("firstvec pull oci://registry.example.com/tiny:1 --only onnx-fp32", True),
        ("firstvec list", False),
        ("export FIRSTVEC_TRACE=1", False),
    ],
)
def test_commands_that_take_long_are_known(line: str, is_long: bool) -> None:
    assert is_long_and_right(line) is is_long


@pytest.mark.parametrize(
    "line",
    [
        "make no-such-target",
        "pip install 'firstvec[no-such-extra]'",
        "pip install another-package",
        "pip install -c no-such-file firstvec",
        "pip install --find-links elsewhere firstvec",
        "firstvec build --no-such-option",
        "firstvec pull oci://registry.example.com/tiny:1 --no-such-option",
        "python benchmarks/cold_start.py --no-such-option",
    ],
)
def test_target_or_option_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        is_long_and_right(line)


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    blocks = [*blocks_of("```sh\nfalse\ntrue\n```\n\n```console\n$ echo 'a\nb'\na\nb\n$ false\n```\n")]
    assert [[*commands_of(block)] for block in blocks] == [["false", "true"], ["echo 'a\nb'", "false"]]
    for block in blocks:
        with pytest.raises(AssertionError):
            run_shell(block, tmp_path)
