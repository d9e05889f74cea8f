"""`firstvec similar`: the lines of text files that are most similar to a query."""

from __future__ import annotations

import os
import sys
from heapq import nlargest
from math import dist, hypot

from firstvec.commands.encode import is_file_name, json_text
from firstvec.errors import InputError, printable
from firstvec.loader import OptimizedEmbeddingLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, BinaryIO

    from firstvec.provider import EmbeddingProvider

    Line = tuple[str, int, str]
    """File, number counted from 1, and text."""

_STDIN = "-"
_BATCH_LINES = 1024
_BATCH_CHARACTERS = 1 << 20
"""A batch ends with the line that reaches so many characters."""
_MAX_LINE_BYTES = 1 << 20
"""Of a longer line, only so many bytes are read. They are more than any model reads of a text."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def similar(
    query: str | None,
    files: Sequence[str],
    texts_are_literal: bool,
    model: str,
    strategy: str,
    top: int,
    as_json: bool,
    **choice_options: Any,
) -> None:
    """Print the lines of text files that are most similar to a query, the best first.

    Each line comes with its cosine to the query, its file and its number. Without a FILE the lines come from stdin.
    Empty lines are passed over. Memory does not depend on the size of the files.
    """
    if query is None or not query.strip():
        raise InputError("the query is missing or empty: firstvec similar QUERY FILE")
    if query == _STDIN and not texts_are_literal:
        raise InputError("the first argument is the query, and - stands for stdin: firstvec similar QUERY -")
    if not texts_are_literal and is_file_name(query):
        import shlex

        name = shlex.quote(query)
        raise InputError(
            f"{query!r} is a file, and the first argument is the query: firstvec similar QUERY {name}\n"
            f"To look for the name itself: firstvec similar -- {name}"
        )
    _check(files)
    loader = OptimizedEmbeddingLoader(model, strategy, output="list", **choice_options)
    loader.start_loading()
    provider = loader.get_provider(timeout=None)
    lines = (line for name in files or [_STDIN] for line in _read_lines(name))
    found = nlargest(top, _score(provider, query, lines), key=lambda each: each[0])
    if not found:
        places = ", ".join(map(repr, files)) or "stdin"
        raise InputError(f"{places}: there is no line that is not empty, and so nothing to compare with the query")
    if not as_json:
        for score, (name, number, text) in found:
            # Texts come from elsewhere, and a terminal would obey their control characters. Tabs are harmless.
            parts = f"{score:.3f}  {name}:{number}  {text}".split("\t")
            sys.stdout.write("\t".join(map(printable, parts)) + "\n")
        return
    objects = ", ".join(
        f'{{"score": {score:.6f}, "file": {json_text(name)}, "line": {number}, "text": {json_text(text)}}}'
        for score, (name, number, text) in found
    )
    sys.stdout.write(
        f'{{"model": {json_text(provider.manifest.model.name)}, "artifact": {json_text(provider.artifact.id)}, '
        f'"query": {json_text(query)}, "lines": [{objects}]}}\n'
    )


def _check(files: Sequence[str]) -> None:
    """Refuse what cannot be read, before the model is loaded."""
    # Only `-` waits for a terminal, because forgotten files must not look like a command that hangs.
    if (not files or _STDIN in files) and (sys.stdin is None or (not files and sys.stdin.isatty())):
        raise InputError(
            f"there is no text to search: name files, or pipe lines into stdin ({_STDIN} reads what you type)"
        )
    if files.count(_STDIN) > 1:
        raise InputError(f"stdin ({_STDIN}) is named twice: it can be read once")
    for name in files:
        if name == _STDIN:
            continue
        try:
            os.stat(name)  # `open` would wait for the other end of a pipe
        except OSError as error:
            raise _unreadable(name, error) from error
        if os.path.isdir(name):
            raise InputError(f"{name!r} is a folder: name its files")


def _score(provider: EmbeddingProvider[Any, Any], query: str, lines: Iterator[Line]) -> Iterator[tuple[float, Line]]:
    """Yield each line with its cosine to the query."""
    target = provider.embed_query(query)
    length = hypot(*target)
    for batch in _batches(lines):
        vectors = provider.encode_document([text for _, _, text in batch])
        for line, vector in zip(batch, vectors, strict=True):
            # Without numpy, because its import takes longer than all of this for thousands of lines.
            # |a - b|² = |a|² + |b|² - 2ab, because hypot and dist are loops in C, and a sum of products takes twice as
            # long.
            other = hypot(*vector)
            product = (length**2 + other**2 - dist(target, vector) ** 2) / 2
            yield product / (length * other) if length and other else 0.0, line


def _batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    characters = 0
    for line in lines:
        batch.append(line)
        characters += len(line[2])
        if len(batch) == _BATCH_LINES or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _read_lines(name: str) -> Iterator[Line]:
    """Yield the lines of a file that are not empty.

    Raises:
        InputError: the file cannot be read, or is no text in UTF-8.
    """
    try:
        with _open(name) as stream:
            place = number = 0  # the place is the line's first byte
            while data := stream.readline(_MAX_LINE_BYTES):
                number += 1
                text = _decode(data, name, place)
                place += len(data)
                while data and not data.endswith(b"\n"):  # the rest of a line that is too long
                    data = stream.readline(_MAX_LINE_BYTES)
                    place += len(data)
                if text.strip():
                    yield name, number, text
    except OSError as error:
        raise _unreadable(name, error) from error


def _open(name: str) -> BinaryIO:
    # Closing stdin's own descriptor would let the next file that is opened become stdin.
    return open(os.dup(sys.stdin.fileno()) if name == _STDIN else name, "rb")


def _decode(data: bytes, name: str, place: int) -> str:
    what = "stdin" if name == _STDIN else repr(name)
    if b"\0" in data:
        raise InputError(
            f"{what} is no text (byte {place + data.index(0)} is zero). Text in UTF-16 must be converted first, for "
            "example with iconv"
        )
    if place == 0:
        data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        # A cut can go through a character.
        if len(data) < _MAX_LINE_BYTES - len(_BYTE_ORDER_MARK) or error.reason != "unexpected end of data":
            raise InputError(
                f"{what} is not UTF-8 (byte {place + error.start}); convert it first, for example with iconv"
            ) from error
        text = data[: error.start].decode("utf-8")
    return text.removesuffix("\n").removesuffix("\r")


def _unreadable(name: str, error: OSError) -> InputError:
    what = "stdin" if name == _STDIN else repr(name)
    return InputError(f"{what} cannot be read ({error.strerror or error})")
