"""Build docsearch in every form in which an app is shipped, check its answers, and measure its start and its size.

Each form is built in a folder of its own from wheels, with the commands of docs/frozen.md. Its processes get a home of
their own, and no other environment. A *first start* begins with an empty home: what the form unpacks, compiles or
verifies is done again. The *next starts* are measured in rounds. Every round starts each form once, in turn. The peers
are the same program: their folder holds docsearch.py, and a module ``firstvec`` with the peer's model behind the names
that docsearch imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from fresh import BUNDLE, ProcessFailed, Usage, measure
from record import machine, markdown_list, markdown_table, write

REPOSITORY = Path(__file__).parents[1]
DOCSEARCH = REPOSITORY / "examples/docsearch"
PYTHON = os.path.realpath(sys.executable)
"""The interpreter that runs the forms. It has none of the packages of this environment."""
QUERY = "convert binary data to printable text"
PEER = "sentence-transformers, folder"

# The commands of docs/frozen.md. tests/test_shipped_forms.py compares them with the page.
WHEELS = (
    "pip wheel --no-deps --wheel-dir dist firstvec examples/docsearch",
    "firstvec wheel --model all-MiniLM-L6-v2 --only native-int8",
)
SHIV = ("shiv --output-file docsearch.pyz --console-script docsearch dist/*.whl",)
PEX = ("pex --output-file docsearch.pex --console-script docsearch dist/*.whl",)
PEX_VENV = (f"{PEX[0]} --venv prepend",)
FUNCTION = (
    "pip install --no-compile --target function dist/*.whl",
    "cp examples/docsearch/handler.py function",
    "python -m compileall -q --invalidation-mode unchecked-hash function",
    "PYTHONPATH=function python -m docsearch index --index function/stdlib.index",
    "python -m zipfile -c function.zip function/*",
)
FREEZING = (
    "python -m venv freezing",
    "freezing/bin/pip install pyinstaller",
    "freezing/bin/pip install dist/*.whl",
)
FROZEN = ("freezing/bin/pyinstaller --strip --exclude-module inspect examples/docsearch/docsearch.py",)
_FAST_FILE = f"PYINSTALLER_ZLIB_COMPRESSION_LEVEL=0 {FROZEN[0]} --onefile"
ONE_FILE = (f"{_FAST_FILE} --name docsearch-file",)
BESIDE = (
    "python -m zipfile -e dist/firstvec_bundle*.whl unpacked",
    "mv unpacked/firstvec_bundles/* dist/bundle",
    "rm -r freezing/lib/python3*/site-packages/firstvec_bundles",
    f"{_FAST_FILE} --name docsearch-beside",
)


class BuildFailed(Exception):
    """A command of a form failed. The message has the command and what it printed."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of the app, which is built."""

    name: str
    ships: Path
    """The file or the folder that is shipped."""
    command: tuple[str, ...]
    home: Path
    """Where the form's processes keep what they unpack and remember. The folder need not exist."""
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """All variables of the form's processes."""
        own = {"PATH": os.defpath, "HOME": str(self.home), "FIRSTVEC_CACHE": str(self.home / "firstvec")}
        return own | self.environ

    def start(self) -> Usage:
        """Search in a fresh process, and check the answer."""
        usage = measure(self.command, self.environment)
        hits = json.loads(usage.output)
        if not hits or not hits[0]["name"].startswith(("base64.", "binascii.")):
            raise BuildFailed(f"{self.name}: wrong answer: {usage.output[:500]}")
        return usage

    def forget(self) -> None:
        """Let the next start be the first."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)


class Workshop:
    """A folder in which forms are built.

    Args:
        folder: an empty folder.
        bundle: the bundle of all-MiniLM-L6-v2.
        entries: docstrings in the index.
    """

    def __init__(self, folder: Path, bundle: Path = BUNDLE, entries: int = 400) -> None:
        self.folder = folder
        self.entries = entries
        self._bundle = bundle
        (folder / "examples").mkdir(parents=True)
        (folder / "examples/docsearch").symlink_to(DOCSEARCH)

    def run(self, command: str, **environ: str) -> None:
        """Run a command of the page in the folder, with the programs of this environment.

        Raises:
            BuildFailed: the command failed.
        """
        # From the checkout and not from an index. The environment has hatchling.
        command = command.replace("--wheel-dir dist firstvec ", f"--wheel-dir dist {shlex.quote(str(REPOSITORY))} ")
        command = command.replace("pip wheel ", "pip wheel --quiet --no-build-isolation --no-index ")
        command = command.replace(" dist/*.whl", " --no-index dist/*.whl")
        command = command.replace("pip install ", "pip install --quiet --disable-pip-version-check ")
        if command.startswith("shiv "):
            command += f" --python {shlex.quote(PYTHON)}"
        if command.startswith("pex "):
            command += f" --python {shlex.quote(PYTHON)}"
        if " index --index " in command:
            command += f" --limit {self.entries}"
        if command.startswith("firstvec "):
            environ["FIRSTVEC_ARTIFACTS"] = str(self._bundle.parent)
        # An installed app must find the bundle that it was installed with.
        unset = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PIP_CONSTRAINT", "FIRSTVEC_ARTIFACTS")
        own = {name: value for name, value in os.environ.items() if name not in unset}
        own |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}",
            "FIRSTVEC_CACHE": str(self.folder / "build-cache"),
            "FIRSTVEC_HOME": str(self.folder / "no-bundles"),
            "PEX_ROOT": str(self.folder / "pex-root"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=own | environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildFailed(f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")

    def make_wheels(self) -> None:
        """Make the wheels of firstvec, of docsearch and of the bundle in ``dist``."""
        for command in WHEELS:
            self.run(command)

    def make_index(self) -> Path:
        """Make the index for the forms that take it as a file, once."""
        path = self.folder / "stdlib.index"
        if not path.exists():
            program = f"{shlex.quote(sys.executable)} {shlex.quote(str(DOCSEARCH / 'docsearch.py'))}"
            self.run(f"{program} index --index {path}", FIRSTVEC_ARTIFACTS=str(self._bundle.parent))
        return path

    def search(self, *program: object, index: Path | None = None) -> tuple[str, ...]:
        """Return the command of a search."""
        path = self.make_index() if index is None else index
        return (*map(str, program), "search", QUERY, "--json", "--top", "3", "--index", str(path))

    def install(self, name: str, *requirements: str) -> Path:
        """Install packages into a folder, with the pinned versions."""
        folder = self.folder / name
        pinned = f"--constraint {shlex.quote(str(REPOSITORY / 'constraints.txt'))} --target {folder}"
        # torch alone first, because as a dependency it may come in another build.
        for group in ([each for each in requirements if each == "torch"], [*requirements]):
            if group:
                self.run(f"pip install --upgrade {pinned} {' '.join(map(shlex.quote, group))}")
        return folder

    def form(self, name: str, ships: Path, command: Sequence[str], **environ: str) -> Form:
        """Return a form, whose home lies in the workshop's folder."""
        return Form(name, ships, tuple(command), self.folder / "homes" / name.replace(" ", "-"), environ)


def make_shiv(shop: Workshop) -> Form:
    """Make a file of shiv."""
    for command in SHIV:
        shop.run(command)
    file = shop.folder / "docsearch.pyz"
    return shop.form("shiv", file, shop.search(file))


def make_pex(shop: Workshop) -> Form:
    """Make a file of pex."""
    for command in PEX:
        shop.run(command)
    file = shop.folder / "docsearch.pex"
    return shop.form("pex", file, shop.search(file))


def make_pex_venv(shop: Workshop) -> Form:
    """Make a file of pex that makes a virtual environment at its first start."""
    for command in PEX_VENV:
        shop.run(command.replace("docsearch.pex", "docsearch-venv.pex"))
    file = shop.folder / "docsearch-venv.pex"
    return shop.form("pex --venv", file, shop.search(file))


def _freeze(shop: Workshop, *commands: str) -> None:
    """Run commands in the environment of PyInstaller, which the first call makes."""
    if not (shop.folder / "freezing").exists():
        commands = (*FREEZING, *commands)
    for command in commands:
        shop.run(command, PIP_CONSTRAINT=str(REPOSITORY / "constraints.txt"))


def make_pyinstaller(shop: Workshop) -> Form:
    """Make a folder of PyInstaller."""
    _freeze(shop, *FROZEN)
    folder = shop.folder / "dist/docsearch"
    return shop.form("PyInstaller, folder", folder, shop.search(folder / "docsearch"))


def make_one_file(shop: Workshop) -> Form:
    """Make a file of PyInstaller."""
    _freeze(shop, *ONE_FILE)
    file = shop.folder / "dist/docsearch-file"
    return shop.form("PyInstaller, file", file, shop.search(file))


def make_beside(shop: Workshop) -> Form:
    """Make a file of PyInstaller, with the bundle beside it."""
    _freeze(shop, *BESIDE)
    folder = shop.folder / "beside"
    folder.mkdir()
    for name in ("docsearch-beside", "bundle"):
        (shop.folder / "dist" / name).rename(folder / name)
    return shop.form("PyInstaller, file and bundle", folder, shop.search(folder / "docsearch-beside"))


CALL = "import json, handler; print(handler.handler({'query': %r, 'top': 3}, None)['body'])"


def make_function(shop: Workshop) -> Form:
    """Make the function's zip file, and unpack it as a platform does."""
    for command in FUNCTION:
        shop.run(command)
    folder = shop.folder / "task"
    shop.run("python -m zipfile -e function.zip task")
    return shop.form("function", folder, (PYTHON, "-B", "-c", CALL % QUERY), PYTHONPATH=str(folder))


def make_folder(shop: Workshop) -> Form:
    """Make a folder of installed packages, as the Dockerfile does."""
    shop.run("pip install --no-compile --target app dist/*.whl")
    shop.run("python -m compileall -q --invalidation-mode unchecked-hash app")
    folder = shop.folder / "app"
    return shop.form("folder (Dockerfile)", folder, shop.search(PYTHON, "-m", "docsearch"), PYTHONPATH=str(folder))


def make_onnxruntime(shop: Workshop) -> Form:
    """Make the function's folder for a model that only onnxruntime computes."""
    shop.run("firstvec wheel --model all-MiniLM-L6-v2 --only onnx-int8-avx2 --output dist-onnx")
    bundle = map(str, (shop.folder / "dist-onnx").glob("*.whl"))
    [runtime] = (shop.folder / "dist").glob("firstvec-*.whl")
    [app] = (shop.folder / "dist").glob("docsearch-*.whl")
    folder = shop.install("onnxruntime", f"firstvec[onnx,tokenizers] @ file://{runtime}", *bundle, str(app))
    return _with_own_index(shop, "folder, onnxruntime", folder)


PEER_MODULE = '''
"""The names of firstvec that docsearch imports, with another library behind them."""
from types import SimpleNamespace as Record

class FirstvecError(Exception):
    pass

class LoadingStrategy:
    PROGRESSIVE = BACKGROUND = None

def preload_embeddings(*_, **__):
    pass

class EmbeddingProvider:
    manifest = Record(model=Record(name="all-MiniLM-L6-v2", revision=None))
    artifact = Record(id={name!r})

    def __init__(self):
        import os
        folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")
{load}
    def embed_batch(self, texts, batch_size, show_progress_bar):
        return {batch}

    def embed_query(self, query):
        return {query}

def get_embedding_provider(*_, **__):
    return EmbeddingProvider()
'''


def make_fastembed(shop: Workshop) -> Form:
    """Make a folder with fastembed and the bundle's ONNX file in full precision, which is what fastembed ships."""
    folder = shop.install("fastembed", "fastembed")
    for name in ("onnx/model.onnx", "onnx/model.onnx_data", *_CONFIGURATION):
        (folder / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shop._bundle / name, folder / "model" / name)
    load = """
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType
        TextEmbedding.add_custom_model(
            model="local/model", pooling=PoolingType.DISABLED, normalization=False, dim=384,
            sources=ModelSource(hf="local/model"), model_file="onnx/model.onnx",
            additional_files=["onnx/model.onnx_data"],
        )
        self.model = TextEmbedding("local/model", specific_model_path=folder)
"""
    code = PEER_MODULE.format(
        name="fastembed",
        load=load,
        batch="__import__('numpy').array([*self.model.embed(texts)], '<f4')",
        query="next(iter(self.model.embed([query])))",
    )
    return _peer(shop, "fastembed, folder", folder, code)


_CONFIGURATION = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


def make_sentence_transformers(shop: Workshop) -> Form:
    """Make a folder with sentence-transformers and the model that the bundle was built from."""
    from firstvec_build.source import resolve

    folder = shop.install("sentence-transformers", "torch", "sentence-transformers")
    shutil.copytree(resolve("all-MiniLM-L6-v2").path, folder / "model")
    load = """
        from sentence_transformers import SentenceTransformer
        self.model = SentenceTransformer(folder, device="cpu")
"""
    code = PEER_MODULE.format(
        name="sentence-transformers",
        load=load,
        batch="self.model.encode(texts, batch_size=batch_size)",
        query="self.model.encode(query)",
    )
    return _peer(shop, PEER, folder, code)


def _peer(shop: Workshop, name: str, folder: Path, code: str) -> Form:
    (folder / "firstvec.py").write_text(code, "utf-8")
    shutil.copy(DOCSEARCH / "docsearch.py", folder)
    return _with_own_index(shop, name, folder)


def _with_own_index(shop: Workshop, name: str, folder: Path) -> Form:
    """Return the form of a folder of packages, with an index of its own vectors."""
    index = folder / "stdlib.index"
    shop.run(f"PYTHONPATH={folder} {PYTHON} -m docsearch index --index {index}")
    command = shop.search(PYTHON, "-m", "docsearch", index=index)
    offline = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return shop.form(name, folder, command, PYTHONPATH=str(folder), **offline)


FORMS: dict[str, Callable[[Workshop], Form]] = {
    "folder": make_folder,
    "function": make_function,
    "shiv": make_shiv,
    "pex": make_pex,
    "pex-venv": make_pex_venv,
    "pyinstaller": make_pyinstaller,
    "pyinstaller-file": make_one_file,
    "pyinstaller-beside": make_beside,  # uninstalls the bundle from the environment of the two above
    "onnxruntime": make_onnxruntime,
    "fastembed": make_fastembed,
    "sentence-transformers": make_sentence_transformers,
}
"""The name for ``--only`` → what builds the form."""


def size(*paths: Path) -> int:
    """Return the bytes of all files below the paths. A file with several names counts once."""
    files: dict[tuple[int, int], int] = {}
    for path in paths:
        for each in (path, *path.rglob("*")):
            if not each.is_symlink() and each.is_file():
                status = each.stat()
                files[status.st_dev, status.st_ino] = status.st_size
    return sum(files.values())


def packed_size(form: Form, scratch: Path) -> int:
    """Return the bytes of the file to ship: the form's own file, or a zip file of its folder."""
    if form.ships.is_file():
        return form.ships.stat().st_size
    return Path(shutil.make_archive(str(scratch / "packed"), "zip", form.ships)).stat().st_size


def measure_forms(forms: Sequence[Form], rounds: int, first_starts: int) -> dict[str, dict[str, list[Any]]]:
    """Return (wall time, processor time) of the first and of the next starts of each form."""
    samples: dict[str, dict[str, list[Any]]] = {form.name: {"first": [], "next": []} for form in forms}
    for kind, count in (("first", first_starts), ("next", rounds)):
        for number in range(count):
            for form in forms:
                if kind == "first":
                    form.forget()
                usage = form.start()
                samples[form.name][kind].append((round(usage.seconds, 4), round(usage.processor_seconds, 4)))
            print(f"{kind} starts: {number + 1}/{count}", file=sys.stderr)
    return samples


def table(forms: Sequence[Form], sizes: Mapping[str, tuple[int, int]], samples: Mapping[str, Any]) -> str:
    """Return the table in Markdown."""
    heading = ["form", "on disk, MB", "to ship, MB", "first start, s", "next starts, s", "processor time, s"]
    rows = [[*heading, "× sooner"]]
    for form in forms:
        (first, _), (wall, cpu) = (zip(*samples[form.name][kind], strict=True) for kind in ("first", "next"))
        ratio = "–"
        if PEER in samples:
            theirs = [seconds for seconds, _ in samples[PEER]["next"]]
            ratio = f"{median(their / own for their, own in zip(theirs, wall, strict=True)):.1f}"
        on_disk, to_ship = sizes[form.name]
        times = [f"{median(each):.3f}" for each in (first, wall, cpu)]
        rows.append([form.name, f"{on_disk / 1e6:.1f}", f"{to_ship / 1e6:.1f}", *times, ratio])
    return markdown_table(rows)


def main() -> None:
    """Build the forms, measure them, print the table, and write the files that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the bundle of all-MiniLM-L6-v2")
    parser.add_argument("--rounds", type=int, default=10, help="counted next starts (default 10)")
    parser.add_argument("--first-starts", type=int, default=3, help="first starts (default 3)")
    parser.add_argument("--entries", type=int, default=400, help="docstrings in the index (default 400)")
    parser.add_argument("--only", action="append", choices=FORMS, help="build this form only")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="build in this folder, and keep it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the machine")
    options = parser.parse_args()
    if min(options.rounds, options.first_starts, options.entries) < 1:
        parser.error("--rounds, --first-starts and --entries must be at least 1")
    if options.work is not None and options.work.exists():
        parser.error(f"{options.work} exists: name a new folder")
    with tempfile.TemporaryDirectory(prefix="firstvec-ship-") as scratch:
        work = options.work.absolute() if options.work is not None else Path(scratch, "work")
        shop = Workshop(work, options.bundle.absolute(), options.entries)
        try:
            shop.make_wheels()
            forms = []
            for name in options.only or FORMS:
                print(f"building: {name}", file=sys.stderr)
                forms.append(FORMS[name](shop))
            samples = measure_forms(forms, options.rounds, options.first_starts)
        except (BuildFailed, ProcessFailed) as error:
            sys.exit(f"error: {error}")
        sizes = {form.name: (size(form.ships, form.home), packed_size(form, Path(scratch))) for form in forms}
    found = table(forms, sizes, samples)
    print(found)
    facts = {"rounds": options.rounds, "first starts": options.first_starts, "entries": options.entries, **machine()}
    if options.json:
        write(options.json, json.dumps({"run": facts, "sizes": sizes, "samples": samples}) + "\n")
    if options.markdown:
        write(options.markdown, f"# docsearch in every shipped form\n\n{found}\n{markdown_list(facts)}")


if __name__ == "__main__":
    main()
