"""What one run does: the options of `firstvec embed`, declared and checked once."""

from __future__ import annotations

import os

from firstvec.errors import InputError
from firstvec.options import DEFAULT_MODEL, Options, is_ray_address, make_options
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

INPUT_FORMATS = ("parquet", "jsonl", "csv", "lines")
OUTPUT_FORMATS = ("parquet", "jsonl", "npy")
DTYPES = {"float32": "float32", "float16": "float32", "int8": "int8", "binary": "ubinary"}
"""Type of the output's numbers → the precision that `EmbeddingProvider.encode` computes for it."""
ON_ERROR = ("fail", "skip", "null")
DEFAULT_SHARD_ROWS = 10_000
_FORMAT_OF_ENDING = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy"}


class Job(Record):
    """The options of one run. `make_job` checks them."""

    inputs: tuple[str, ...]
    """Paths, patterns, or ``-`` for stdin."""
    output: str
    single: bool
    """Whether the output is one file. Otherwise it is a folder with a file for each shard."""
    output_format: str
    input_format: str | None
    """None: the ending of each input decides."""
    text_column: str
    id_column: str | None
    """None: the output has the columns ``file`` and ``row``."""
    keep: tuple[str, ...]
    dtype: str
    truncate_dim: int | None
    normalize: bool
    prompt: str
    """``none``, ``query``, ``document``, or ``name:NAME``."""
    on_error: str
    dedupe: bool
    shard_rows: int
    batch_size: int
    workers: int | None
    """Processes that compute. None: this one, or as many as a cluster has processors."""
    ray: str | None
    """Address of a Ray cluster, or ``local`` for one on this machine. None: without Ray."""
    overwrite: bool
    options: Options
    """Which artifact is loaded."""

    @property
    def precision(self) -> str:
        """The precision of `EmbeddingProvider.encode`."""
        return DTYPES[self.dtype]

    def settings(self) -> dict[str, Any]:
        """Return the options that decide which bytes are written. A run that goes on must have the same ones."""
        names = (
            *("input_format", "output_format", "text_column", "id_column", "keep", "dtype", "truncate_dim"),
            *("normalize", "prompt", "on_error", "dedupe", "shard_rows", "batch_size"),
        )
        return {name: list(value) if type(value := getattr(self, name)) is tuple else value for name in names}

    def encode_arguments(self) -> dict[str, Any]:
        """Return the arguments of `EmbeddingProvider.encode` besides the texts."""
        return {
            "batch_size": self.batch_size,
            "precision": self.precision,
            "truncate_dim": self.truncate_dim,
            "normalize_embeddings": self.normalize,
            "output": "buffer",
        }


def make_job(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    text_column: str = "text",
    id_column: str | None = None,
    keep: Sequence[str] = (),
    input_format: str | None = None,
    output_format: str | None = None,
    dtype: str = "float32",
    truncate_dim: int | None = None,
    normalize: bool = False,
    query: bool = False,
    document: bool = False,
    prompt_name: str | None = None,
    on_error: str = "fail",
    dedupe: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    shard_rows: int = DEFAULT_SHARD_ROWS,
    batch_size: int = 32,
    overwrite: bool = False,
    **choice_options: Any,
) -> Job:
    """Check the options of a run, and return them as a record.

    Raises:
        InputError: an option is unknown, or two options contradict each other.
    """
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else [*inputs]
    if not given:
        raise InputError("there is no input: name a file, a pattern, or - for stdin")
    folder_or_file = os.fspath(output)
    ending = os.path.splitext(folder_or_file)[1].lower()
    single = ending in _FORMAT_OF_ENDING and not os.path.isdir(folder_or_file)
    if not folder_or_file or (ending and not single and not os.path.isdir(folder_or_file)):
        raise InputError(
            f"output {folder_or_file!r} is neither a folder nor a file that ends with {', '.join(_FORMAT_OF_ENDING)}; "
            "choose another --output"
        )
    form = output_format or (_FORMAT_OF_ENDING[ending] if single else "parquet")
    _check_choice("output_format", form, OUTPUT_FORMATS)
    if single and form != _FORMAT_OF_ENDING[ending]:
        raise InputError(f"output {folder_or_file!r} does not have the ending of {form}; choose another --output")
    for name, value, choices in (
        ("dtype", dtype, (*DTYPES,)),
        ("on_error", on_error, ON_ERROR),
        ("input_format", input_format or "lines", INPUT_FORMATS),
    ):
        _check_choice(name, value, choices)
    numbers = {"workers": 1 if workers is None else workers, "shard_rows": shard_rows, "batch_size": batch_size}
    for name, number in numbers.items():
        _check_positive(name, number)
    if ray is not None and not (isinstance(ray, str) and is_ray_address(ray)):
        raise InputError(f"{ray!r} is no address of a Ray cluster: use local, auto or HOST:PORT")
    if truncate_dim is not None:
        _check_positive("truncate_dim", truncate_dim)
    if query + document + (prompt_name is not None) > 1:
        raise InputError("--query, --document and --prompt-name name different prompts: give one of them")
    columns = [text_column, *([id_column] if id_column is not None else []), *keep]
    if not all(isinstance(name, str) and name for name in columns):
        raise InputError("the name of a column is not a text, or is empty")
    written = [*([id_column] if id_column is not None else ["file", "row"]), *keep, "embedding"]
    if twice := sorted({name for name in written if written.count(name) > 1}):
        raise InputError(f"the output would have the column {twice[0]!r} twice: name each column once")
    if form == "npy" and (id_column is not None or keep):
        raise InputError("npy holds vectors only, and no other columns: choose parquet or jsonl")
    if form == "npy" and on_error == "null" and dtype in ("int8", "binary"):
        raise InputError(f"npy of {dtype} has no number that means null: take --on-error skip, or parquet")
    prompt = "query" if query else "document" if document else "none"
    return Job(
        inputs=tuple(os.fspath(each) for each in given),
        output=folder_or_file.rstrip(os.sep) or os.sep,
        single=single,
        output_format=form,
        input_format=input_format,
        text_column=text_column,
        id_column=id_column,
        keep=(*keep,),
        dtype=dtype,
        truncate_dim=truncate_dim,
        normalize=bool(normalize),
        prompt=prompt if prompt_name is None else f"name:{prompt_name}",
        on_error=on_error,
        dedupe=bool(dedupe),
        shard_rows=shard_rows,
        batch_size=batch_size,
        workers=workers,
        ray=ray,
        overwrite=bool(overwrite),
        # The session that runs fastest, from the first shard on: a hand-over in the middle could change bits.
        options=make_options(model, "background", output="buffer", **choice_options),
    )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"unknown {name} {value!r}: use one of {', '.join(choices)}")


def _check_positive(name: str, number: object) -> None:
    if type(number) is not int or number < 1:
        raise InputError(f"{name} {number!r} is not a positive integer")
