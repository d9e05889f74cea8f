"""Write the tables with which firstvec's own engine tokenizes: ``artifacts/FORMAT.md`` describes the file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import count

import numpy as np
from tokenizers import normalizers, pre_tokenizers

from firstvec.bundle.manifest import WordPiece
from firstvec.text.wordpiece import Characters, LeaveToPackage

_MAGIC, _BYTE_ORDER, _VERSION = b"firstwrd", 0x01020304, 1
_HEADER = struct.Struct("<8s2IQ9I8I4I20x")
_CODE_POINTS, _PAGE = 0x110000, 128
_FIRST_UNASSIGNED, _BEHIND_UNASSIGNED = 0x40000, 0xE0000
"""Planes 4 to 13, in which Unicode has assigned no code point. All become what the first one becomes."""
_EMPTY = 0xFFFFFFFF
_ITSELF, _NOTHING, _SPACE, _WORD, _LEAVE, _REPLACEMENT = range(6)
_MOST_SPECIAL = 4
_MOST_CHARACTERS, _MOST_BYTES = 256, 255
"""The longest word, and the longest token, that the engine takes."""


def make_tables(rules: WordPiece, vocabulary: str, added_ids: Sequence[int] | None = None) -> bytes | None:
    """Return the bytes of the file for a vocabulary, one token a line. None: the rules exceed the file's limits.

    Args:
        rules: the tokenizer's.
        vocabulary: one token a line.
        added_ids: of the added tokens. None: a text that holds one is left to the tokenizers package.
    """
    tokens = vocabulary.removesuffix("\n").split("\n")
    bodies = [_body(token) for token in tokens]
    longest = max(len(text) for text, _ in bodies)
    around = (*rules.prefix_ids, *rules.suffix_ids)
    added = [token.encode() for token in rules.added_tokens]
    if (
        max(len(rules.prefix_ids), len(rules.suffix_ids)) > _MOST_SPECIAL
        or max(longest, *map(len, added), 1) > _MOST_BYTES
        or rules.max_input_chars_per_word > _MOST_CHARACTERS
    ):
        return None
    slots, most_probes = _make_slots(bodies)
    strings = b"".join(bytes((len(text), continues)) + text for text, continues in bodies)
    starts = np.cumsum([0, *(2 + len(text) for text, _ in bodies[:-1])])
    pages, characters, replacements = _make_characters(rules)
    data = bytearray(_HEADER.size)
    added_bytes = b"".join(bytes((len(token),)) + token for token in added)
    if added_ids is not None:
        added_bytes += struct.pack(f"<{len(added)}I", *added_ids)
    for part in (
        slots.astype("<u4").tobytes(),
        starts.astype("<u4").tobytes(),
        strings,
        added_bytes,
        pages.astype("<u2").tobytes(),
        characters.astype("<u4").tobytes(),
        replacements,
    ):
        data += bytes(-len(data) % 64) + part
    _HEADER.pack_into(
        data,
        0,
        *(_MAGIC, _BYTE_ORDER, _VERSION, len(data)),
        *(len(tokens), len(slots), most_probes, len(strings), longest, rules.max_input_chars_per_word, rules.unk_id),
        *(len(rules.prefix_ids), len(rules.suffix_ids), *around, *[0] * (2 * _MOST_SPECIAL - len(around))),
        *(len(added), len(added_bytes), len(characters), len(replacements)),
    )
    return bytes(data)


def _body(token: str) -> tuple[bytes, bool]:
    """Return a token's bytes without ``##``, and whether the token continues a word."""
    continues = token.startswith("##") and len(token) > 2
    return (token[2:] if continues else token).encode(), continues


def _make_slots(bodies: list[tuple[bytes, bool]]) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint32]], int]:
    """Return the hash table (FNV-1a, linear probing, at most half full), and the probes that a search needs at most."""
    size = 1 << (2 * len(bodies)).bit_length()
    slots = np.full(size, _EMPTY, np.uint32)
    most = 1
    for token_id, (text, continues) in enumerate(bodies):
        value = 2166136261 ^ (0x9E3779B9 if continues else 0)
        for byte in text:
            value = (value ^ byte) * 16777619 & 0xFFFFFFFF
        value ^= value >> 15
        for probe in count():
            if slots[(value + probe) % size] == _EMPTY:
                slots[(value + probe) % size] = token_id
                most = max(most, probe + 1)
                break
    return slots, most


class _LaterCharacters:
    """What the tokenizers package makes of one character, in the form of `firstvec.text.wordpiece.Characters`."""

    def __init__(self, *, lowercase: bool, strip_accents: bool) -> None:
        self._normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        self._pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def __getitem__(self, character: str) -> str:
        normalized = self._normalizer.normalize_str(f"a{character}b")
        words = " ".join(word for word, _ in self._pre_tokenizer.pre_tokenize_str(normalized))
        return words.removeprefix("a").removesuffix("b")


def _make_characters(rules: WordPiece) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Return the page of each 128 code points, the pages' entries, and the text of all replacements."""
    table = Characters(lowercase=rules.lowercase, strip_accents=rules.strip_accents)
    later = _LaterCharacters(lowercase=rules.lowercase, strip_accents=rules.strip_accents)
    entries = np.zeros(_CODE_POINTS, np.uint32)
    replacements, places = bytearray(), dict[bytes, int]()
    for code in (*range(_FIRST_UNASSIGNED + 1), *range(_BEHIND_UNASSIGNED, _CODE_POINTS)):
        try:
            becomes = table[code] if not 0xD800 <= code < 0xE000 else None
        except LeaveToPackage:
            becomes = later[chr(code)]
        if becomes is None:
            entries[code] = _LEAVE
        elif becomes in ("", " "):
            entries[code] = _SPACE if becomes else _NOTHING
        elif becomes == chr(code):
            entries[code] = _ITSELF
        elif becomes == f" {chr(code)} ":
            entries[code] = _WORD
        else:
            text = becomes.encode()
            assert len(text) < 64, "6 bits hold the length of a replacement"
            if text not in places:
                places[text] = len(replacements)
                replacements += text
            entries[code] = _REPLACEMENT | len(text) << 3 | places[text] << 9
    entries[_FIRST_UNASSIGNED:_BEHIND_UNASSIGNED] = entries[_FIRST_UNASSIGNED]
    characters, pages = np.unique(entries.reshape(-1, _PAGE), axis=0, return_inverse=True)
    return pages.reshape(-1), characters, bytes(replacements)
