"""The rows of one shard, and the reasons why a row has no usable text."""

from __future__ import annotations

import hashlib

from firstvec.errors import InputError
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_CHARACTERS = 1 << 18
"""So many characters of a text are tokenized. A model reads 8,192 tokens at most, and a token has 32 characters rarely.
Tokenizing needs up to 137 bytes a byte of text (docs/reliability.md), so a longer text would fill the memory."""


class Rows(Record):
    """The rows of one shard, as they were read."""

    number: int
    """Of the shard, over all inputs."""
    source: int
    """Index of the input."""
    first: int
    """Number of the first row in its input, from 0."""
    texts: list[str | None]
    """None: the row has no usable text."""
    bad: list[tuple[int, str]]
    """Number of the row in its input, and the reason."""
    cut: int
    """Texts of more than `MAX_CHARACTERS`."""
    table: Any
    """`pyarrow.Table`: the columns that are kept, the id first."""
    position: int
    """Bytes of the input that were read so far."""

    def digest(self) -> str:
        """Return a digest of the texts, for a later run that cannot know in another way that stdin is the same."""
        found = hashlib.sha256()
        for text in self.texts:
            data = b"" if text is None else text.encode()
            found.update(b"%d:" % (-1 if text is None else len(data)))
            found.update(data)
        return found.hexdigest()


class Problem(Exception):
    """Why a row has no usable text, in words that follow "row 5"."""


def check_text(value: object) -> tuple[str, bool]:
    """Return the text, and whether its end was cut off.

    Raises:
        Problem: it is null, no text, or no Unicode.
    """
    if type(value) is bytes:
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise Problem(f"is not UTF-8 (byte {error.start} of the text)") from None
    if not isinstance(value, str):
        raise Problem("is null" if value is None else f"is {type(value).__name__}, and no text")
    is_long = len(value) > MAX_CHARACTERS
    if is_long:
        value = value[:MAX_CHARACTERS]
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Problem("is not Unicode: it has a lone surrogate, or bytes that are no UTF-8") from None
    return value, is_long


def values_of(column: Any) -> list[object]:
    """Return the values of an Arrow column that should hold texts: str, or bytes where Arrow finds no UTF-8.

    Raises:
        InputError: the column holds no texts.
    """
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    if not (is_text or is_bytes or pa.types.is_null(kind)):
        raise InputError(f"the column of the texts is {column.type}, and no text: choose another --text-column")
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:  # Arrow checks no UTF-8 when it reads a file
        values = column.cast(kind).cast(pa.large_binary()).to_pylist()
    return values


class TextList:
    """Texts that are collected row by row: what `Rows` has as ``texts``, ``bad`` and ``cut``."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.texts: list[str | None] = []
        self.bad: list[tuple[int, str]] = []
        self.cut = 0

    def add(self, value: object) -> None:
        """Add a row's text, or the `Problem` that the reader has found."""
        try:
            if isinstance(value, Problem):
                raise value
            text, is_long = check_text(value)
        except Problem as problem:
            self.bad.append((self.first + len(self.texts), str(problem)))
            self.texts.append(None)
        else:
            self.texts.append(text)
            self.cut += is_long
