"""Semantic search over the docstrings of the Python standard library: an example of an app that ships firstvec.

The index is one file of three parts. The first part is a header of JSON, padded to a page. The second part is the
vectors (float32, little-endian, shape (N, D)). The third part is N lines of JSON, of which a search parses only its
hits.
"""

# ruff: noqa: E402 - `--time` counts the imports, so the clock starts before them
from __future__ import annotations

import time

STARTED = time.perf_counter()

import json
import os
import signal
import struct
import sys
from heapq import nsmallest
from math import dist

from firstvec import FirstvecError, LoadingStrategy, get_embedding_provider, preload_embeddings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    import ast
    from collections.abc import Iterator
    from typing import Any

    from firstvec import EmbeddingProvider

# Beside this file, or beside the executable of a frozen app.
_HOME = os.path.dirname(os.path.abspath(sys.executable if getattr(sys, "frozen", False) else __file__))
_SHIPPED = os.path.join(_HOME, "bundle")
BUNDLE = _SHIPPED if os.path.isdir(_SHIPPED) else "all-MiniLM-L6-v2"
# A search needs its first vector soon and then ends. Indexing needs the session that runs fastest. Both strategies take
# the same artifact, because the vectors of two artifacts differ a little.
STRATEGIES = {"search": LoadingStrategy.PROGRESSIVE, "index": LoadingStrategy.BACKGROUND}

# A buffer needs no numpy, whose import takes longer than the first vector.
OPTIONS = {"enable_quantization": True, "output": "buffer"}

CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
DEFAULT_INDEX = os.path.join(CACHE, "docsearch", "stdlib.index")
FORMAT = "docsearch-1"
HEADER_BYTES = 4096
MIN_DOCSTRING = 15
SKIPPED_FOLDERS = {"dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}
# These private modules hold the docstrings of a public module, whose own file only imports them.
PUBLIC_NAMES = {"_pydatetime": "datetime", "_pydecimal": "decimal", "_pyio": "io", "pathlib._local": "pathlib"}


class UsageError(Exception):
    """The user has to do something else first. The exit code is 2."""


def main(argv: list[str]) -> int:
    """Run one command; return the exit code."""
    try:
        if argv and argv[0] in STRATEGIES and not {"-h", "--help"}.intersection(argv):
            # This call is first, because the model then loads while the arguments are parsed and the index is opened.
            preload(argv[0])
        arguments = parse(argv)
        if arguments.command == "index":
            index(os.path.abspath(arguments.index), arguments.limit)
        else:
            search(arguments.query, arguments.index, arguments.top, as_json=arguments.json)
            if arguments.time:
                sys.stdout.flush()
                print(f"{(time.perf_counter() - STARTED) * 1000:.0f} ms from first line to result", file=sys.stderr)
    except KeyboardInterrupt:
        print("docsearch: interrupted", file=sys.stderr)
        return 130
    except (UsageError, FirstvecError) as error:
        print(f"docsearch: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        print(f"docsearch: {error.filename or 'the output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def preload(command: str) -> None:
    """Start to load the model as a command needs it."""
    preload_embeddings(BUNDLE, STRATEGIES[command], **OPTIONS)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    import argparse

    def positive(text: str) -> int:
        if (number := int(text)) < 1:
            raise ValueError
        return number

    parser = argparse.ArgumentParser("docsearch.py", description="Search the standard library's docstrings by meaning.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--index", default=DEFAULT_INDEX, metavar="FILE", help="default: %(default)s")
    command = commands.add_parser("index", parents=[shared], help="collect and embed the docstrings")
    command.add_argument("--limit", type=positive, metavar="N", help="stop after N docstrings")
    command = commands.add_parser("search", parents=[shared], help="find the docstrings nearest to a question")
    command.add_argument("query", metavar="QUERY")
    command.add_argument("--top", type=positive, default=5, metavar="N", help="number of results, default %(default)s")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--time", action="store_true", help="print the duration on stderr")
    return parser.parse_args(argv)


def index(path: str, limit: int | None) -> None:
    """Collect and embed the docstrings, and put the index in place when it is complete."""
    import sysconfig

    root = sysconfig.get_paths()["stdlib"]
    entries: dict[str, dict[str, str]] = {}  # text to embed → entry, so that a repeated text counts once
    for text, entry in collect(root):
        entries.setdefault(text, entry)
        if len(entries) == limit:
            break
    if not entries:
        raise UsageError(f"{root} holds no docstrings: this Python comes without its library's sources")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder: pass --index the name of a file")
    provider = get_embedding_provider(BUNDLE, STRATEGIES["index"], **OPTIONS)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here Ctrl-C must remove the partial file
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        # The file is opened before the slow part, so that a folder that cannot be written is reported at once.
        with open(partial, "wb") as file:
            # A bundle that was built with --dynamic-int8 scales a batch as a whole, so a vector depends slightly on the
            # texts beside it. For the documents of a search that is fine, because the ranking hardly changes.
            vectors = provider.embed_batch(list(entries), batch_size=32, show_progress_bar=True)  # (N, D)
            header = {"format": FORMAT, "shape": vectors.shape, "origin": origin(provider)}
            file.write(json.dumps(header).encode().ljust(HEADER_BYTES))
            file.write(vectors)
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in entries.values())
        os.replace(partial, path)
    except BaseException:  # also KeyboardInterrupt, because an earlier index must stay as it was
        if os.path.exists(partial):
            os.remove(partial)
        raise
    print(f"{len(entries)} docstrings of {root}, embedded with {provider.manifest.model.name} ({provider.artifact.id})")
    print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB")


def search(query: str, path: str, top: int, *, as_json: bool) -> None:
    """Print the docstrings nearest to ``query``, best first."""
    hits = find(query, path, top)
    if as_json:
        print(json.dumps(hits, indent=2, ensure_ascii=False))
        return
    for hit in hits:
        print(f"{hit['score']:.3f}  {hit['name']}  ({hit['where']})\n       {hit['summary']}")


def find(query: str, path: str, top: int) -> list[dict[str, Any]]:
    """Return the entries nearest to ``query``, best first, each with its score."""
    if not query.strip():
        raise UsageError("the query is empty: give a question")
    vectors, lines, made_with = open_index(path)
    provider = get_embedding_provider(BUNDLE, STRATEGIES["search"], **OPTIONS)
    if (own := origin(provider)) != made_with:
        theirs, ours = (" ".join(f"{key} {value}" for key, value in made.items()) for made in (made_with, own))
        raise UsageError(f"{path} was made with {theirs}; this is {ours}: run `docsearch.py index` again")
    # The model's vectors have unit length, so the nearest vector has the highest cosine: 1 - distance² / 2.
    # `dist` is a loop in C. For these few thousand vectors it takes less time than the import of numpy.
    own_vector = tuple(provider.embed_query(query))  # (D,)
    distances = [dist(own_vector, vector) for vector in vectors]
    return [
        {"score": round(1 - distances[row] ** 2 / 2, 4), **json.loads(lines[row])}
        for row in nsmallest(top, range(len(lines)), distances.__getitem__)
    ]


def open_index(path: str) -> tuple[Iterator[tuple[float, ...]], list[bytes], dict[str, str | None]]:
    """Return an index's vectors, shape (N, D), the lines of its N entries, and the facts of `origin`."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(HEADER_BYTES))
            if header["format"] != FORMAT:
                raise ValueError
            count, dim = header["shape"]
            vectors = struct.iter_unpack(f"<{dim}f", file.read(4 * count * dim))
            *lines, rest = file.read().split(b"\n")
        if rest or len(lines) != count:
            raise ValueError
        return vectors, lines, header["origin"]
    except FileNotFoundError:
        raise UsageError(f"there is no index at {path} yet: run `docsearch.py index` first") from None
    except (ValueError, KeyError, TypeError, struct.error):  # the header misses a key, or its numbers do not fit
        raise UsageError(f"{path} is damaged, or no index of this version: run `docsearch.py index` again") from None


def origin(provider: EmbeddingProvider) -> dict[str, str | None]:
    """Return the facts that must be equal for the vectors of an index and of a query."""
    model = provider.manifest.model
    return {"model": model.name, "revision": model.revision, "artifact": provider.artifact.id}


def collect(root: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the text to embed and the entry to show of each public docstring; import none of the modules."""
    import ast
    import re
    import warnings

    warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in sources that are only read
    warnings.simplefilter("ignore", DeprecationWarning)
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and name[0] != "_")
        for path in sorted(os.path.join(folder, name) for name in files if name.endswith(".py")):
            module = os.path.relpath(path, root)[: -len(".py")].replace(os.sep, ".").removesuffix(".__init__")
            public = PUBLIC_NAMES.get(module, module)
            if any(part[0] == "_" for part in public.split(".")):
                continue
            try:
                with open(path, "rb") as file:
                    tree = ast.parse(file.read())
            except (SyntaxError, ValueError):
                continue
            for name, node in definitions(tree, public):
                docstring = ast.get_docstring(node) or ""
                paragraph = " ".join(re.split(r"\n\s*\n", docstring, maxsplit=1)[0].split())
                if len(paragraph) >= MIN_DOCSTRING:
                    where = f"{module}:{getattr(node, 'lineno', 1)}"
                    yield f"{name}: {paragraph}", {"name": name, "where": where, "summary": docstring.splitlines()[0]}


def definitions(
    node: ast.AST, name: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield a module or class, and the public classes, functions and methods in it, with qualified names."""
    import ast

    if isinstance(node, (ast.Module, ast.ClassDef)):
        yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.If, ast.Try, ast.ExceptHandler)):  # definitions for some platforms only
            yield from definitions(child, name)
        elif isinstance(child, ast.ClassDef) and child.name[0] != "_":
            yield from definitions(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and child.name[0] != "_":
            yield f"{name}.{child.name}", child


def run() -> int:
    """Run the command of the process's arguments; return the exit code. This is the installed command's function."""
    # Ctrl-C ends the process without KeyboardInterrupt. A KeyboardInterrupt while two threads import can leave a lock
    # of CPython's import taken. The loading thread would then wait for ever, and the exit would wait for that thread.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
