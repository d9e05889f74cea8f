"""JSON that is read with suspicion: every value is checked, and every error says where in the document it is."""

from __future__ import annotations

import errno
import json
import os
import stat
from math import isfinite

from firstvec.errors import ManifestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")


def read_regular(path: str, size: int, *, linked: bool = False) -> bytes:
    """At most ``size`` bytes of a regular file, which may be a symbolic link to one if ``linked``.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    if not linked and os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a symbolic link", path)
    # Not to wait for a writer, should it be a pipe.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags if linked else flags | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        return stream.read(size)


def parse_object(data: bytes, file: str) -> CheckedObject:
    """Parse a JSON document whose top is an object.

    Raises:
        ManifestError: it is not UTF-8 JSON, holds a key twice in one object, NaN, Infinity or a lone surrogate, or is
            nested too deeply.
    """
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestError(file, f"is not valid JSON ({error})") from error
    if b"\\" in data:  # UTF-8 has no surrogates: it takes an escape, and few documents have any
        _no_lone_surrogates(document, file)
    return CheckedObject(document, file)


def is_below(version: str, limit: str) -> bool:
    """Whether ``version`` comes before ``limit``; `CheckedObject.version` accepted both."""
    first, second = int(version.partition(".")[0]), int(limit.partition(".")[0])
    return first < second if first != second else _release(version) < _release(limit)


def _release(version: str) -> list[int]:
    """The parts of a version; 1.0 is 1."""
    parts = [*map(int, version.split("."))]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def is_number(text: str) -> bool:
    """Whether ``text`` is a short run of ASCII digits."""
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} occurs twice")
            seen.add(key)
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _no_lone_surrogates(document: Any, file: str) -> None:
    """Such a string can be neither printed nor written, not even in an error."""
    left: list[tuple[str, Any]] = [("", document)]
    while left:  # not by recursion: a document may be nested as deeply as the stack allows
        place, value = left.pop()
        if isinstance(value, dict):
            left += ((f"{place}.{_shown(key)}" if place else _shown(key), inner) for key, inner in value.items())
            value = "".join(value)
        elif isinstance(value, list):
            left += (
                (f"{place}[{at}]", inner) for at, inner in enumerate(value) if isinstance(inner, str | list | dict)
            )
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                at = f"{file}: {place}" if place else file
                raise ManifestError(at, f"holds a lone surrogate, {value[error.start]!r}") from error


def _shown(key: str) -> str:
    """A key that the document chose, as errors spell it."""
    return key[:80] if key.isprintable() else ascii(key[:80])


class CheckedObject:
    """A JSON object and its place in the document, so that every error can say where."""

    def __init__(self, value: Any, file: str, parent: CheckedObject | None = None, key: str = "") -> None:
        self.file = file
        self._parent = parent
        self._key = key
        if not isinstance(value, dict):
            raise ManifestError(f"{file}: {self.place}" if key else file, f"is {_kind(value)}, not an object")
        self.value = value

    @property
    def place(self) -> str:
        """For example ``artifacts[2].files[0]``; made for errors only."""
        return self._parent._at(self._key) if self._parent is not None else ""

    def error(self, key: str, reason: str) -> ManifestError:
        return ManifestError(f"{self.file}: {self._at(key)}", reason)

    def _at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _get(self, key: str, kind: type[T]) -> T:
        if key not in self.value:
            raise self.error(key, "is missing")
        value = self.value[key]
        if type(value) is not kind:
            raise self.error(key, f"is {_kind(value)}, not {_NAMES[kind]}")
        return value

    def text(self, key: str) -> str:
        return self._checked(key, self._get(key, str))

    def _checked(self, key: str, value: str) -> str:
        if not value or len(value) > 10_000:
            raise self.error(key, "is empty" if not value else "is longer than 10000 characters")
        if not value.isprintable() and any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in value):
            raise self.error(key, f"is {value[:80]!r}: control characters are not for names")
        return value

    def literal(self, key: str, expected: str) -> None:
        if (value := self.text(key)) != expected:
            raise self.error(key, f"is {value[:80]!r}, not {expected!r}")

    def one_of(self, key: str, choices: tuple[str, ...]) -> str:
        if (value := self.text(key)) not in choices:
            raise self.error(key, f"is {value[:80]!r}, not one of {', '.join(choices)}")
        return value

    def one_of_each(self, key: str, choices: tuple[str, ...]) -> list[str]:
        values: list[Any] = self._get(key, list)
        for index, value in enumerate(values):
            if value not in choices:
                raise self.error(f"{key}[{index}]", f"is {str(value)[:80]!r}, not one of {', '.join(choices)}")
        if not values:
            raise self.error(key, "is empty")
        return values

    def version(self, key: str) -> str:
        value = self.text(key)
        if len(value) > 100 or not all(map(is_number, value.split("."))):
            raise self.error(key, f"{value[:80]!r} is not a version like 1.23.0")
        return value

    def digest(self, key: str) -> str:
        value = self.text(key)
        if len(value) != 64 or value.strip("0123456789abcdef"):
            raise self.error(key, f"{value[:80]!r} is not a SHA-256 of 64 lower-case hexadecimal digits")
        return value

    def boolean(self, key: str) -> bool:
        return self._get(key, bool)

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._get(key, int)
        if not low <= value <= high:
            raise self.error(key, f"is not between {low} and {high}")
        return value

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        values: list[Any] = self._get(key, list)
        for index, value in enumerate(values):
            if type(value) is not int or not low <= value <= high:
                raise self.error(f"{key}[{index}]", f"is not an integer between {low} and {high}")
        return tuple(values)

    def strings(self, key: str) -> tuple[str, ...]:
        values: list[Any] = self._get(key, list)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"{key}[{index}]", f"is {_kind(value)}, not a string")
            self._checked(f"{key}[{index}]", value)
        return tuple(values)

    def number(self, key: str, low: float, high: float) -> float:
        value = self.value.get(key)
        value = float(value) if type(value) is int and abs(value) < 1 << 53 else self._get(key, float)
        if not low <= value <= high or value in (float("inf"), float("-inf")):
            raise self.error(key, f"is {value}, not a finite number between {low:g} and {high:g}")
        return value

    def numbers(self, key: str) -> dict[str, float]:
        inner = self.child(key)
        for name in inner.value:
            if not name.isprintable() or len(name) > 200:
                raise self.error(key, f"holds the key {name[:80]!r}, which is no name")
        return {name: inner.number(name, float("-inf"), float("inf")) for name in inner.value}

    def floats(self, key: str) -> list[float]:
        """Little-endian float32 numbers in base64."""
        import sys
        from array import array
        from binascii import a2b_base64

        values = array("f")
        try:
            values.frombytes(a2b_base64(self._get(key, str), strict_mode=True))
        except ValueError as error:  # a wrong character, or a number that is cut off
            raise self.error(key, f"is not float32 numbers in base64 ({error})") from error
        if sys.byteorder == "big":
            values.byteswap()
        if not all(map(isfinite, values)):
            raise self.error(key, "holds a number that is not finite")
        return values.tolist()

    def base64(self, key: str) -> bytes:
        """Bytes in base64, as an encoder writes them: no two texts give the same bytes."""
        from binascii import a2b_base64, b2a_base64

        text = self._get(key, str)
        try:
            data = a2b_base64(text, strict_mode=True)
        except ValueError as error:  # a wrong character, or one that is not ASCII
            raise self.error(key, f"is not base64 ({error})") from error
        if b2a_base64(data, newline=False) != text.encode():
            raise self.error(key, "is not base64 as an encoder writes it")
        return data

    def texts(self, key: str) -> dict[str, str]:
        values: dict[str, Any] = self._get(key, dict)
        for name, value in values.items():
            if not isinstance(value, str):
                raise self.error(f"{key}.{_shown(name)}", f"is {_kind(value)}, not a string")
        return values

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        return read(key) if self.value.get(key) is not None else None

    def child(self, key: str) -> CheckedObject:
        return CheckedObject(self._get(key, dict), self.file, self, key)

    def children(self, key: str, at_least: int = 0) -> list[CheckedObject]:
        values: list[Any] = self._get(key, list)
        if len(values) < at_least:
            raise self.error(key, "is empty")
        return [CheckedObject(value, self.file, self, f"{key}[{index}]") for index, value in enumerate(values)]


_NAMES: dict[type, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
_NAMES |= {list: "an array", dict: "an object", type(None): "null"}


def _kind(value: object) -> str:
    return _NAMES[type(value)]
