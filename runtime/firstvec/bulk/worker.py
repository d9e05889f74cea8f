"""A worker process: texts in on stdin, vectors out on stdout. It imports no pyarrow and, for float32, no numpy.

A message is its length, 8 bytes, and what `marshal` makes of a value. Both ends are the same Python and the same
firstvec. The process ends when its stdin does, so also when the process that started it was killed.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys

from firstvec.errors import FirstvecError
from firstvec.loader import OptimizedEmbeddingLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

    from firstvec.options import Options
    from firstvec.provider import EmbeddingProvider


def load(options: Options) -> EmbeddingProvider[Any, Any]:
    """Load the model, and wait for it."""
    loader: OptimizedEmbeddingLoader[Any, Any] = OptimizedEmbeddingLoader.__new__(OptimizedEmbeddingLoader)
    loader._set_up(options)
    return loader.get_provider(timeout=None)


def load_with_cores(options: Options, cores: int) -> EmbeddingProvider[Any, Any]:
    """Load with as many threads as this process's share of the cores. A session keeps the number that it finds.

    The native engine asks for the number at its first run of several texts.
    """
    if not hasattr(os, "sched_setaffinity"):  # macOS
        return load(options)
    usable = os.sched_getaffinity(0)
    # Processes that start together should not load on the same core.
    cores_in_turn = sorted(usable, key=lambda core: ((core - os.getpid()) % len(usable), core))
    os.sched_setaffinity(0, cores_in_turn[:cores])
    try:
        provider = load(options)
        provider.encode(["", ""])
        return provider
    finally:
        os.sched_setaffinity(0, usable)


def encode_with(provider: EmbeddingProvider[Any, Any], prompt: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    """Return the function: texts → a buffer of their vectors. ``prompt`` is that of `firstvec.bulk.job.Job`."""
    if prompt.startswith("name:"):
        arguments = arguments | {"prompt_name": prompt.removeprefix("name:")}
    run = {"query": provider.encode_query, "document": provider.encode_document}.get(prompt, provider.encode)
    return lambda texts: run(texts, **arguments)


def describe(provider: EmbeddingProvider[Any, Any]) -> dict[str, Any]:
    """Return what decides the vectors, for the checkpoint, and what the output's schema says of the model."""
    import hashlib
    import json

    manifest, artifact = provider.manifest, provider.artifact
    model = manifest.model

    def digest(value: object) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    ranges = next((file.sha256 for file in manifest.support_files if file.path.startswith("vector_ranges")), None)
    return {
        "model": model.name,
        "revision": model.revision,
        "model_sha256": digest(model.to_plain()),
        "tokenizer_sha256": manifest.tokenizer.sha256,
        "artifact": artifact.id,
        "artifact_sha256": digest([[file.path, file.sha256] for file in artifact.files]),
        "vector_ranges_sha256": ranges,
        # The native engine computes the same bits with every instruction set, which it names in parentheses.
        "engine": provider.engine.partition(" (")[0],
        "embedding_dim": model.embedding_dim,
        "normalized": model.normalized,
        "batch_invariant": artifact.batch_invariant,
        "quality": artifact.quality.to_dict(),
    }


def write_message(stream: BinaryIO, value: Any) -> None:
    """Write a message."""
    data = marshal.dumps(value)
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def read_message(stream: BinaryIO) -> Any:
    """Read a message.

    Raises:
        EOFError: the other end is gone.
    """
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    data = stream.read(size) if len(head) == 8 else b""
    if len(head) < 8 or len(data) < size:
        raise EOFError("the other process is gone")
    return marshal.loads(data)


def main() -> None:
    """Load the model, say which one it is, and answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has started this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to stderr
    questions = sys.stdin.buffer
    try:
        options, cores, prompt, arguments = _unpickle(read_message(questions))
        try:
            provider = load_with_cores(options, cores)
            encode = encode_with(provider, prompt, arguments)
            write_message(answers, ("ready", describe(provider)))
        except FirstvecError as error:
            write_message(answers, ("error", _pickle(error)))
            return
        while True:
            texts = read_message(questions)
            try:
                answer = ("vectors", bytes(encode(texts)))
            except FirstvecError as error:
                answer = ("error", _pickle(error))
            write_message(answers, answer)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # nobody waits for this process any more, and nothing is left to be written


def _pickle(value: object) -> bytes:
    import pickle

    return pickle.dumps(value)


def _unpickle(data: bytes) -> Any:
    import pickle

    return pickle.loads(data)
