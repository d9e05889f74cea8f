"""What the writers of tokenizer tables share: entries of code points, lists of strings, arrays in a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Entry = TypeVar("_Entry", np.uint8, np.uint32)

CODE_POINTS, PAGE = 0x110000, 128
LEAVE = 4
"""The entry of a code point whose texts are left to the tokenizers package."""
MOST_SPECIAL = 4
"""Ids before a text, and behind it, that a file takes."""
MOST_BYTES = 255
"""Of a string whose texts are left to the package: one byte holds the length."""


@cache
def certain_code_points() -> Sequence[int]:
    """Return the code points on which Python and the package agree, whatever their Unicode versions.

    Unicode 3.2 had assigned such a code point, or it is a later symbol, for example an emoji.
    """
    old, new = unicodedata.ucd_3_2_0.category, unicodedata.category
    found = []
    for code in (*range(0xD800), *range(0xE000, CODE_POINTS)):
        character = chr(code)
        if old(character) != "Cn" or (new(character)[0] == "S" and not unicodedata.decomposition(character)):
            found.append(code)
    return found


def make_pages(entries: npt.NDArray[_Entry]) -> tuple[npt.NDArray[np.int64], npt.NDArray[_Entry]]:
    """Return the page of each 128 code points, and the pages that differ, (pages, 128)."""
    characters, pages = np.unique(entries.reshape(-1, PAGE), axis=0, return_inverse=True)
    return pages.reshape(-1), characters


def list_strings(strings: Sequence[str]) -> bytes:
    """Return the strings in UTF-8, each behind one byte with its length."""
    return b"".join(bytes((len(each.encode()),)) + each.encode() for each in strings)


def join_arrays(header_bytes: int, *arrays: bytes) -> bytearray:
    """Return an empty header and the arrays, each on the next multiple of 64 bytes."""
    data = bytearray(header_bytes)
    for array in arrays:
        data += bytes(-len(data) % 64) + array
    return data
