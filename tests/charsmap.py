"""SentencePiece's compiled normalizer, made in memory: what ``Precompiled`` of the tokenizers package reads."""

from __future__ import annotations

import base64
import struct
import unicodedata
from functools import cache


@cache
def make_charsmap() -> str:
    """Return a map like ``nmt_nfkc``, which XLM-R and T5 have, in base64.

    The map has each code point that NFKC changes, each pair that NFKC composes, control characters that vanish, and
    white space that becomes a space.
    """
    forms: dict[str, str] = {}
    for code in (*range(1, 0xD800), *range(0xE000, 0x30000)):
        character = chr(code)
        parts = unicodedata.decomposition(character).split()
        form = unicodedata.normalize("NFKC", character)
        if form != character:
            forms[character] = form
        elif len(parts) == 2 and parts[0][0] != "<":
            forms[unicodedata.normalize("NFD", character)] = character
        if unicodedata.category(character) == "Cc":
            forms[character] = ""
    forms |= dict.fromkeys("\t\n\r\u1680\u2028\u2029\u200b\ufeff", " ")
    values, texts = {}, bytearray()
    for key, form in forms.items():
        values[key.encode()] = len(texts)
        texts += form.encode() + b"\0"
    units = _make_double_array(values)
    trie = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + texts).decode()


def _make_double_array(values: dict[bytes, int]) -> list[int]:
    """Return the units of Darts-clone: bits 10 to 30 lead to the children, bit 8 says that a key ends here."""
    keys = sorted(values)
    units, used = [0] * 512, [False] * 512
    used[0] = True
    free, bases = 1, {0}  # two nodes of one base would share their children
    waiting = [(0, 0, len(keys), 0)]
    while waiting:
        node, low, high, depth = waiting.pop()
        ranges: dict[int, tuple[int, int]] = {}
        for number in range(low, high):
            byte = keys[number][depth] if len(keys[number]) > depth else 0
            ranges[byte] = (ranges.get(byte, (number, 0))[0], number + 1)
        while used[free]:
            free += 1
        place = free
        first = next(iter(ranges))
        while True:
            base = place ^ first
            if base not in bases and not used[place] and not any(used[base ^ byte] for byte in ranges):
                break
            place += 1
            if place + 256 > len(used):
                used += [False] * 512
                units += [0] * 512
        bases.add(base)
        units[node] |= (node ^ base) << 10 | (0 in ranges) << 8
        for byte, (begin, end) in ranges.items():
            used[base ^ byte] = True
            if byte == 0:
                units[base] = 1 << 31 | values[keys[begin]]
            else:
                units[base ^ byte] = byte
                waiting.append((base ^ byte, begin, end, depth + 1))
        if len(used) - free < 512:
            used += [False] * 512
            units += [0] * 512
    return units
