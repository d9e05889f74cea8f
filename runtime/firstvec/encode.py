"""`firstvec encode`: texts from the command line or stdin, vectors to stdout or a file.

Here are no command-line libraries: importing typer and rich takes longer than the first vector. `parse` understands
plain use of the options; everything else, and ``--help``, is left to `firstvec.cli`.
"""

from __future__ import annotations

import os
import sys

from firstvec.errors import InputError
from firstvec.loader import DEFAULT_MODEL, OptimizedEmbeddingLoader
from firstvec.plans import PLANS
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from firstvec.provider import EmbeddingProvider

FORMATS = ("json", "npy", "text")


class Request(Record):
    """The arguments of the command."""

    texts: tuple[str, ...] = ()
    """One a line from stdin if there are none."""
    model: str = DEFAULT_MODEL
    strategy: str = "lazy"
    device: str | None = None
    enable_quantization: bool = False
    min_quality: float | None = None
    form: str = "json"
    """One of `FORMATS`."""
    output: str | None = None
    """A file; stdout if None."""
    batch_size: int = 32
    require_signature: str | None = None
    """Path of a public key."""


def parse(arguments: Sequence[str]) -> Request | None:
    """Read the arguments after ``encode``; None if they are not plain enough to be sure of."""
    values: dict[str, Any] = {}
    texts: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-") or argument == "-":
            texts.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name == "--enable-quantization" and not equals:
            values["enable_quantization"] = True
            continue
        if name not in OPTIONS or (equals and not name.startswith("--")):
            return None
        field, read = OPTIONS[name]
        try:
            values[field] = read(value if equals else next(rest))
        except (ValueError, StopIteration):
            return None
    return Request(texts=tuple(texts), **values)


def _one_of(choices: Sequence[str], *, any_case: bool = False) -> Callable[[str], str]:
    def read(text: str) -> str:
        text = text.lower() if any_case else text
        if text not in choices:
            raise ValueError(text)
        return text

    return read


def _batch_size(text: str) -> int:
    if (size := int(text)) < 1:
        raise ValueError(text)
    return size


def _cosine(text: str) -> float:
    if not -1 <= (cosine := float(text)) <= 1:
        raise ValueError(text)
    return cosine


_STRATEGY = ("strategy", _one_of([*PLANS], any_case=True))
_FORM = ("form", _one_of(FORMATS))
OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "--model": ("model", str),
    "-m": ("model", str),
    "--strategy": _STRATEGY,
    "-s": _STRATEGY,
    "--device": ("device", str),
    "--min-quality": ("min_quality", _cosine),
    "--format": _FORM,
    "-f": _FORM,
    "--output": ("output", str),
    "-o": ("output", str),
    "--batch-size": ("batch_size", _batch_size),
    "--require-signature": ("require_signature", str),
}
"""Option → field of `Request`, and how its value is read; the same as those of `firstvec.cli.encode`."""


def run(request: Request) -> None:
    """Embed the texts and write the vectors.

    Raises:
        InputError: there is no text, one is not usable, or the output cannot be written.
        FirstvecError: why the model cannot be loaded.
    """
    if request.form == "npy" and request.output is None and sys.stdout.isatty():
        raise InputError("npy is binary and stdout is a terminal: add --output FILE, or redirect stdout")
    loader = OptimizedEmbeddingLoader(
        request.model,
        request.strategy,
        request.device,
        request.enable_quantization,
        min_quality=request.min_quality,
        output="numpy" if request.form == "npy" else "list",
        require_signature=request.require_signature,
    )
    loader.start_loading()
    lines = request.texts or _stdin_lines()
    if not lines:
        raise InputError("there is no text: give it as an argument, or one text a line on stdin")
    provider = loader.get_provider(timeout=None)
    bar = len(lines) > 1000 and sys.stderr.isatty()
    vectors = provider.encode(lines, batch_size=request.batch_size, show_progress_bar=bar)
    write(_formatted(vectors, request.form, provider), request.output)


def _stdin_lines() -> list[str]:
    if sys.stdin is None or sys.stdin.isatty():
        return []
    try:
        # Not str.splitlines(): a text may hold U+2028 and other characters that it takes for line ends.
        lines = sys.stdin.buffer.read().decode("utf-8").split("\n")
        return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    except UnicodeDecodeError as error:
        raise InputError(
            f"stdin is not UTF-8 (byte {error.start}); convert it first, for example with iconv"
        ) from error
    except OSError as error:
        raise InputError(f"stdin cannot be read ({error.strerror or error})") from error


def _formatted(vectors: Any, form: str, provider: EmbeddingProvider) -> bytes:
    if form == "npy":
        import io

        import numpy

        stream = io.BytesIO()
        numpy.save(stream, vectors)
        return stream.getvalue()
    if form == "text":
        return "".join(" ".join(f"{value:.8g}" for value in vector) + "\n" for vector in vectors).encode()
    import json

    values = {
        "model": provider.manifest.model.name,
        "artifact": provider.artifact.id,
        "embedding_dim": provider.embedding_dim,
        "vectors": [[float(f"{value:.8g}") for value in vector] for vector in vectors],
    }
    return (json.dumps(values) + "\n").encode()


def write(data: bytes, output: str | None) -> None:
    """Write a command's result to a file, whole or not at all, or to stdout.

    Raises:
        InputError: the file cannot be written.
    """
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        if not output or output.endswith(os.sep):
            raise InputError(f"output {output!r} is not a file: choose another --output")
        if os.path.exists(output) and not os.path.isfile(output):
            with open(output, "wb") as stream:  # a device or a pipe is written to, not replaced
                stream.write(data)
        else:
            _replace(os.path.realpath(output), data)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{output}: cannot be written ({error.strerror or error}); choose another --output") from error


def _replace(target: str, data: bytes) -> None:
    """Write a file whole or not at all: a reader never sees half of it."""
    import shutil

    if os.path.islink(target):
        raise InputError(f"{target}: is a link to itself; choose another --output")
    scratch = os.path.join(os.path.dirname(target), f".firstvec-{os.getpid()}.tmp")
    try:
        with open(scratch, "wb") as stream:
            stream.write(data)
        if os.path.exists(target):
            shutil.copymode(target, scratch)
        os.replace(scratch, target)
    except OSError:
        if os.path.exists(scratch):
            os.unlink(scratch)
        raise
