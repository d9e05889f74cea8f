"""Read JSON that nobody vouches for: every value is checked, and every error names its place in the document."""

from __future__ import annotations

import errno
import os
import stat
import sys

from firstvec.errors import ManifestError, excerpt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

_WHITE_SPACE = " \t\n\r"
"""RFC 8259, section 2."""


def read_regular_file(path: str, size: int, *, may_be_link: bool = False) -> bytes:
    """Return at most ``size`` bytes of a regular file, which may be a symbolic link to one if ``may_be_link``.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    if not may_be_link and os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a symbolic link", path)
    # O_NONBLOCK: the open must not wait for a writer if the path is a pipe.
    more_flags = os.O_NONBLOCK | (0 if may_be_link else os.O_NOFOLLOW)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | more_flags)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        return stream.read(size)


def parse_object(data: bytes, file: str) -> CheckedObject:
    """Parse a JSON document whose top is an object.

    Raises:
        ManifestError: the bytes are not UTF-8 JSON, one object has a key twice, there is NaN, Infinity or a lone
            surrogate, or the nesting is too deep.
    """
    try:
        document = _load(data.decode("utf-8"))
        if b"\\" in data:  # a lone surrogate can only come from an escape, and few documents have any escape
            _check_surrogates(document, "", file)
    except (ValueError, RecursionError) as error:
        raise ManifestError(file, f"is not valid JSON ({error})") from error
    if type(document) is not dict:
        raise ManifestError(file, f"is {_KINDS[type(document)]}, not an object")
    return CheckedObject(document, file)


class _Strict:
    """The settings of the scanner: as ``json.loads`` takes them."""

    strict = True
    object_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def object_pairs_hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            for key, _ in pairs:
                if key not in result:
                    raise ValueError(f"the key {key[:80]!r} occurs twice")
                del result[key]
        return result

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")


def _load(text: str) -> Any:
    """Do what ``json.loads`` does, with json's own scanner but without json's import.

    ``import json`` imports re and enum. That took 4 of the 60 ms to the first vector (2-core AMD EPYC, Python 3.11).
    """
    from _json import make_scanner  # CPython has it, and the engines need CPython

    begin = len(text) - len(text.lstrip(_WHITE_SPACE))
    try:
        document, end = make_scanner(_Strict)(text, begin)  # type: ignore[arg-type]
    except StopIteration as error:
        raise ValueError(f"a value is expected at character {error.value}") from None
    except SystemError:
        # The scanner raises the error of json.decoder, and fails if nobody has imported that module.
        if "json.decoder" in sys.modules:
            raise
        import json.decoder  # noqa: F401

        return _load(text)
    if text[end:].strip(_WHITE_SPACE):
        raise ValueError(f"extra data at character {end}")
    return document


def _check_surrogates(value: Any, place: str, file: str) -> None:
    """Refuse lone surrogates, because a string with one can be neither printed nor written, not even in an error."""
    if isinstance(value, dict):
        _check_surrogates("".join(value), place, file)
        for key, inner in value.items():
            _check_surrogates(inner, f"{place}.{excerpt(key)}" if place else excerpt(key), file)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_surrogates(inner, f"{place}[{index}]", file)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            where = f"{file}: {place}" if place else file
            raise ManifestError(where, f"holds a lone surrogate, {value[error.start]!r}") from error


def is_below(version: str, limit: str) -> bool:
    """Return whether ``version`` comes before ``limit``. `CheckedObject.version` has accepted both."""
    first, second = int(version.partition(".")[0]), int(limit.partition(".")[0])
    return first < second if first != second else _release(version) < _release(limit)


def _release(version: str) -> list[int]:
    """Return the parts of a version. 1.0 is the same as 1."""
    parts = [*map(int, version.split("."))]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def is_number(text: str) -> bool:
    """Return whether ``text`` is a short run of ASCII digits."""
    return text.isascii() and text.isdecimal() and len(text) <= 9


class CheckedObject:
    """A JSON object and its place in the document. Each method reads one key, or raises ManifestError."""

    def __init__(self, value: dict[str, Any], file: str, parent: CheckedObject | None = None, key: str = "") -> None:
        self.value = value
        self.file = file
        self._parent = parent
        self._key = key

    @property
    def place(self) -> str:
        """For example ``artifacts[2].files[0]``. Only errors need it."""
        return self._parent._place_of(self._key) if self._parent is not None else ""

    def _place_of(self, key: str) -> str:
        return f"{self.place}{key if key[:1] == '[' else f'.{excerpt(key)}'}".removeprefix(".")

    def error(self, key: str, reason: str) -> ManifestError:
        """Return the error for a key of this object."""
        return ManifestError(f"{self.file}: {self._place_of(key)}", reason)

    def _get(self, key: str, kind: type[T]) -> T:
        if key not in self.value:
            raise self.error(key, "is missing")
        value = self.value[key]
        if type(value) is not kind:
            raise self.error(key, f"is {_KINDS[type(value)]}, not {_KINDS[kind]}")
        return value

    def _items(self, key: str, at_least: int = 0) -> CheckedObject:
        """Return an array as an object. Its keys are ``[0]``, ``[1]`` and so on, as places spell them."""
        values = self._get(key, list)
        if len(values) < at_least:
            raise self.error(key, "is empty")
        return CheckedObject({f"[{index}]": value for index, value in enumerate(values)}, self.file, self, key)

    def text(self, key: str) -> str:
        """A string of 1 to 10,000 characters, without control characters."""
        value = self._get(key, str)
        if not value or len(value) > 10_000:
            raise self.error(key, "is empty" if not value else "is longer than 10000 characters")
        if not value.isprintable() and any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in value):
            raise self.error(key, f"is {value[:80]!r}, which has control characters")
        return value

    def strings(self, key: str, at_least: int = 0) -> tuple[str, ...]:
        """An array of strings, each as `text` accepts it."""
        items = self._items(key, at_least)
        return tuple(map(items.text, items.value))

    def texts(self, key: str) -> dict[str, str]:
        """An object whose values are any strings."""
        inner = self.child(key)
        return {name: inner._get(name, str) for name in inner.value}

    def literal(self, key: str, expected: str) -> None:
        if (value := self.text(key)) != expected:
            raise self.error(key, f"is {value[:80]!r}, not {expected!r}")

    def version(self, key: str) -> str:
        """Numbers with dots between them."""
        value = self.text(key)
        if len(value) > 100 or not all(map(is_number, value.split("."))):
            raise self.error(key, f"{value[:80]!r} is not a version like 1.23.0")
        return value

    def digest(self, key: str) -> str:
        """A SHA-256 of 64 lower-case hexadecimal digits."""
        value = self.text(key)
        if len(value) != 64 or value.strip("0123456789abcdef"):
            raise self.error(key, f"{value[:80]!r} is not a SHA-256 of 64 lower-case hexadecimal digits")
        return value

    def boolean(self, key: str) -> bool:
        return self._get(key, bool)

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer between ``low`` and ``high``, both included."""
        value = self._get(key, int)
        if not low <= value <= high:
            raise self.error(key, f"is not between {low} and {high}")
        return value

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """An array of integers between ``low`` and ``high``, both included."""
        items = self._items(key)
        return tuple(items.integer(index, low, high) for index in items.value)

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number between ``low`` and ``high``, both included."""
        value = self.value.get(key)
        value = float(value) if type(value) is int and abs(value) < 1 << 53 else self._get(key, float)
        if not (low <= value <= high and _is_finite(value)):
            raise self.error(key, f"is {value}, not a finite number between {low:g} and {high:g}")
        return value

    def numbers(self, key: str) -> dict[str, float]:
        """An object whose values are finite numbers."""
        inner = self.child(key)
        for name in inner.value:
            if not name.isprintable() or len(name) > 200:
                raise self.error(key, f"holds the key {name[:80]!r}, which is not a name")
        return {name: inner.number(name, float("-inf"), float("inf")) for name in inner.value}

    def base64(self, key: str) -> bytes:
        """Bytes in base64, as an encoder writes them. So no two texts give the same bytes."""
        from binascii import a2b_base64, b2a_base64

        text = self._get(key, str)
        try:
            data = a2b_base64(text, strict_mode=True)
        except ValueError as error:  # a wrong character, or one that is not ASCII
            raise self.error(key, f"is not base64 ({error})") from error
        if b2a_base64(data, newline=False) != text.encode():
            raise self.error(key, "is not base64 as an encoder writes it")
        return data

    def floats(self, key: str) -> list[float]:
        """Little-endian float32 numbers in base64, all finite."""
        import sys
        from array import array

        values = array("f")
        try:
            values.frombytes(self.base64(key))
        except ValueError as error:  # a number is cut off
            raise self.error(key, f"is not float32 numbers in base64 ({error})") from error
        if sys.byteorder == "big":
            values.byteswap()
        if not all(map(_is_finite, values)):
            raise self.error(key, "holds a number that is not finite")
        return values.tolist()

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """What ``read`` returns for the key. None if the key is missing or null."""
        return read(key) if self.value.get(key) is not None else None

    def child(self, key: str) -> CheckedObject:
        return CheckedObject(self._get(key, dict), self.file, self, key)

    def children(self, key: str, at_least: int = 0) -> list[CheckedObject]:
        items = self._items(key, at_least)
        return [*map(items.child, items.value)]


def _is_finite(number: float) -> bool:
    return float("-inf") < number < float("inf")


_KINDS: dict[type, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
_KINDS |= {list: "an array", dict: "an object", type(None): "null"}
