"""`firstvec encode`: texts from the command line or stdin, vectors to stdout or a file."""

from __future__ import annotations

import os
import sys

from firstvec.errors import InputError
from firstvec.loader import OptimizedEmbeddingLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from firstvec.provider import EmbeddingProvider

_FORM_OF_ENDING = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".npy": "npy",
    ".txt": "text",
}
_OTHER_ENDINGS = (
    *(".arrow", ".feather", ".h5", ".npz", ".parquet", ".pickle", ".pkl", ".pt", ".safetensors", ".tsv"),
    *(".bz2", ".gz", ".xz", ".zip", ".zst"),
)
"""Endings of files in a format that this command does not write."""


def encode(
    texts: Sequence[str],
    model: str,
    strategy: str,
    form: str | None,
    output: str | None,
    batch_size: int,
    precision: str,
    query: bool,
    document: bool,
    prompt_name: str | None,
    texts_are_literal: bool,
    **choice_options: Any,
) -> None:
    """Embed texts: one vector for each text, in their order.

    The texts are the arguments. Without an argument, or with the argument -, the texts are the lines of stdin.
    Every argument behind -- is a text, even if it begins with a dash or is the name of a file.
    """
    output = None if output == "-" else output
    form = form or _form_of(output)
    if query + document + (prompt_name is not None) > 1:
        raise InputError("--query, --document and --prompt-name name different prompts: give one of them")
    if form == "npy" and output is None and sys.stdout.isatty():
        raise InputError("npy is binary and stdout is a terminal: add --output FILE, or redirect stdout")
    reads_stdin = not texts or ((*texts,) == ("-",) and not texts_are_literal)
    if len(texts) > 1 and "-" in texts and not texts_are_literal:
        raise InputError(
            "- stands for stdin, and other texts are given: give one of them, or -- before a text that is -"
        )
    if len(texts) == 1 and not texts_are_literal:
        _refuse_file(texts[0])
    loader: OptimizedEmbeddingLoader[Any, Any] = OptimizedEmbeddingLoader(
        model, strategy, output="numpy" if form == "npy" else "list", **choice_options
    )
    loader.start_loading()
    # Only `-` waits for a terminal, because a forgotten text must not look like a command that hangs.
    lines = _stdin_lines(waits_for_terminal=bool(texts)) if reads_stdin else texts
    if not lines:
        raise InputError("there is no text: give it as an argument, or one text a line on stdin")
    provider = loader.get_provider(timeout=None)
    bar = len(lines) > 1000 and sys.stderr.isatty()
    run = provider.encode_query if query else provider.encode_document if document else provider.encode
    options = {"prompt_name": prompt_name, "batch_size": batch_size, "show_progress_bar": bar, "precision": precision}
    write_result(_format(lines, run(lines, **options), form, provider), output)


def _form_of(output: str | None) -> str:
    """Return the format that the ending of the file asks for."""
    ending = os.path.splitext(output or "")[1].lower()
    if ending in _OTHER_ENDINGS:
        raise InputError(
            f"output {output!r}: encode writes json, jsonl, csv, npy and text, and not {ending[1:]}; "
            "choose another --output, or give the --format"
        )
    return _FORM_OF_ENDING.get(ending, "json")


def is_file_name(text: str) -> bool:
    """Return whether a text is the name of a file, and looks like one."""
    return bool(os.path.splitext(text)[1] or os.sep in text) and os.path.isfile(text)


def _refuse_file(text: str) -> None:
    """Refuse the name of a file as the only text, because that is almost always a mistake."""
    if is_file_name(text):
        import shlex

        name = shlex.quote(text)
        raise InputError(
            f"{text!r} is a file. To embed each line of the file: firstvec encode < {name}\n"
            f"To embed the name itself: firstvec encode -- {name}"
        )


def _stdin_lines(*, waits_for_terminal: bool) -> list[str]:
    if sys.stdin is None or (sys.stdin.isatty() and not waits_for_terminal):
        return []
    try:
        # str.splitlines() would also split at U+2028 and other characters that a text may hold.
        lines = sys.stdin.buffer.read().decode("utf-8").removeprefix("\ufeff").split("\n")
        return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    except UnicodeDecodeError as error:
        raise InputError(
            f"stdin is not UTF-8 (byte {error.start}); convert it first, for example with iconv"
        ) from error
    except OSError as error:
        raise InputError(f"stdin cannot be read ({error.strerror or error})") from error


def _format(texts: Sequence[str], vectors: Any, form: str, provider: EmbeddingProvider[Any, Any]) -> bytes:
    if form == "npy":
        import io

        import numpy

        stream = io.BytesIO()
        numpy.save(stream, vectors)
        return stream.getvalue()
    if form == "text":
        return "".join(" ".join(f"{value:.8g}" for value in vector) + "\n" for vector in vectors).encode()
    if form == "csv":
        header = ",".join(["text", *(f"v{index}" for index in range(len(vectors[0])))]) + "\n"
        return (header + "".join(map(_csv_row, texts, vectors))).encode()
    if form == "jsonl":
        rows = zip(texts, vectors, strict=True)
        return "".join(f'{{"text": {json_text(text)}, "vector": {_json_list(row)}}}\n' for text, row in rows).encode()
    document = (
        f'{{"model": {json_text(provider.manifest.model.name)}, "artifact": {json_text(provider.artifact.id)}, '
        f'"embedding_dim": {provider.embedding_dim}, "vectors": [{", ".join(map(_json_list, vectors))}]}}\n'
    )
    return document.encode()


def json_text(text: str) -> str:
    """Return a text as JSON. `import json` takes a quarter as long as everything else that `encode` does."""
    from _json import encode_basestring_ascii as quoted

    return quoted(text)


def _json_list(vector: Sequence[float]) -> str:
    numbers = (str(value) if type(value) is int else repr(float(f"{value:.8g}")) for value in vector)
    return f"[{', '.join(numbers)}]"


def _csv_row(text: str, vector: Sequence[float]) -> str:
    """Return a row as RFC 4180 says. `import csv` takes about as long as everything else that `encode` does."""
    quoted = text.replace('"', '""')
    return f'"{quoted}",{",".join(f"{value:.8g}" for value in vector)}\n'


def write_result(data: bytes, output: str | None, option: str = "--output") -> None:
    """Write a command's result to a file, whole or not at all, or to stdout. ``option`` has named the file.

    Raises:
        InputError: the file cannot be written.
    """
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    target = os.path.realpath(output)
    try:
        if not output or output.endswith(os.sep) or os.path.islink(target):  # a link at this place links to itself
            raise OSError("it names no file")
        if os.path.exists(output) and not os.path.isfile(output):
            with open(output, "wb") as stream:  # a device or a pipe is written to, and not replaced
                stream.write(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise InputError(
            f"output {output!r} cannot be written ({error.strerror or error}); choose another {option}"
        ) from error


def _replace(target: str, data: bytes) -> None:
    """Write a file whole or not at all. A reader never sees half of it."""
    scratch = os.path.join(os.path.dirname(target), f".firstvec-{os.getpid()}.tmp")
    try:
        with open(scratch, "wb") as stream:
            stream.write(data)
        if os.path.exists(target):
            os.chmod(scratch, os.stat(target).st_mode & 0o7777)
        os.replace(scratch, target)
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)
