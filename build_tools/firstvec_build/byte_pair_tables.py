"""Write the tables with which firstvec's own engine tokenizes as byte-level BPE: ``artifacts/FORMAT.md`` has the form.

The engine splits a text by hand, where the tokenizers package uses a regular expression. The expressions of GPT-2 and
of cl100k_base cover RoBERTa, ModernBERT, Qwen and Llama 3. What is a letter, a number or white space comes from the
package itself, for each code point.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import count, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import pre_tokenizers

from firstvec_build.text_tables import (
    CODE_POINTS,
    LEAVE,
    MOST_BYTES,
    MOST_SPECIAL,
    certain_code_points,
    join_arrays,
    list_strings,
    make_pages,
)

_MAGIC, _BYTE_ORDER, _VERSION = b"firstbpe", 0x01020304, 1
_HEADER = struct.Struct("<8s2IQ7I8I3I32x")
_OTHER, _LETTER, _NUMBER, _WHITE_SPACE, _MARK = 0, 1, 2, 3, 8
_GPT2, _CL100K = 0, 1
_NO_TOKEN = 0xFFFFFFFF
_GPT2_EXPRESSION = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K_EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EXPRESSIONS = {
    _GPT2_EXPRESSION: (_GPT2, 0),
    _CL100K_EXPRESSION.replace("DIGITS", r"\p{N}"): (_CL100K, 1),
    _CL100K_EXPRESSION.replace("DIGITS", r"\p{N}{1,3}"): (_CL100K, 3),
}
"""A regular expression → how the engine splits, and the most digits of a piece."""

Merges = Mapping[tuple[int, int], tuple[int, int]]
"""Ids of two tokens → the rank of their merge, and the id of the merged token."""


def make_tables(package: tokenizers.Tokenizer, prefix_ids: Sequence[int], suffix_ids: Sequence[int]) -> bytes | None:
    """Return the bytes of the file. None: the tokenizer has a part that the engine does not know, or is too large.

    Args:
        package: the tokenizer, whose model is BPE.
        prefix_ids: ids before every text.
        suffix_ids: ids behind every text.
    """
    document = json.loads(package.to_str())
    split, model = _read_split(document["pre_tokenizer"]), document["model"]
    normalizes = document["normalizer"] is not None
    if split is None or (normalizes and document["normalizer"]["type"] != "NFC") or not _is_plain(model):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    letters = _byte_letters()
    if not all(letter in vocabulary for letter in letters):
        return None
    merges = _read_merges(model)
    left = {token["content"] for token in document["added_tokens"]}
    if model.get("ignore_merges") and not _merges_make_all(vocabulary.keys() - left, model, merges):
        return None
    style, most_digits, adds_space = split
    if normalizes:  # the package looks for such a token in normalized text
        left |= {unicodedata.normalize("NFC", token) for token in left}
    if style == _CL100K:
        left.add("'\u017f")  # which is 's if case is ignored
    if (
        max(len(prefix_ids), len(suffix_ids)) > MOST_SPECIAL
        or max((len(each.encode()) for each in left), default=0) > MOST_BYTES
    ):
        return None
    slots, most_probes = _make_slots(merges)
    pages, classes = make_pages(_make_classes(normalizes=normalizes))
    strings = list_strings(sorted(left))
    around = (*prefix_ids, *suffix_ids)
    data = join_arrays(
        _HEADER.size,
        np.array([vocabulary[letter] for letter in letters], "<u4").tobytes(),
        slots.astype("<u4").tobytes(),
        strings,
        pages.astype("<u2").tobytes(),
        classes.astype("u1").tobytes(),
    )
    _HEADER.pack_into(
        data,
        0,
        *(_MAGIC, _BYTE_ORDER, _VERSION, len(data)),
        *(len(slots), most_probes, style, most_digits, adds_space, len(prefix_ids), len(suffix_ids)),
        *(*around, *[0] * (2 * MOST_SPECIAL - len(around))),
        *(len(left), len(strings), len(classes)),
    )
    return bytes(data)


def _read_split(pre_tokenizer: dict[str, Any] | None) -> tuple[int, int, bool] | None:
    """Return how a text is split, the most digits of a piece, and whether a text gets a space. None: it is unknown."""
    if pre_tokenizer is None:
        return None
    if pre_tokenizer["type"] == "ByteLevel":
        return (_GPT2, 0, pre_tokenizer["add_prefix_space"]) if pre_tokenizer["use_regex"] else None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else []
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, as_bytes = steps
    found = _EXPRESSIONS.get(split["pattern"].get("Regex"))
    if split["behavior"] != "Isolated" or split["invert"] or as_bytes["use_regex"] or as_bytes["add_prefix_space"]:
        return None
    return found and (*found, False)


def _is_plain(model: dict[str, Any]) -> bool:
    """Return whether the model merges pairs of bytes, and does nothing else."""
    names = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return not any(model.get(name) for name in names)


def _byte_letters() -> list[str]:
    """Return the letter that stands for each byte (``bytes_to_unicode`` in GPT-2's encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = count(0x100)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _read_merges(model: dict[str, Any]) -> Merges:
    vocabulary = model["vocab"]
    merges = {}
    for rank, merge in enumerate(model["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        merges[vocabulary[first], vocabulary[second]] = rank, vocabulary[first + second]
    return merges


def _merges_make_all(tokens: Iterable[str], model: dict[str, Any], merges: Merges) -> bool:
    """Return whether the merges make each token from its bytes. Then a token needs no look before the merges."""
    vocabulary, known = model["vocab"], set(_byte_letters())
    for token in tokens:
        if not token or not known.issuperset(token):
            continue  # no text has this token's bytes
        ids = [vocabulary[letter] for letter in token]
        while len(ids) > 1:
            found = [(merges[pair][0], at) for at, pair in enumerate(pairwise(ids)) if pair in merges]
            if not found:
                return False
            at = min(found)[1]
            ids[at : at + 2] = [merges[ids[at], ids[at + 1]][1]]
        if ids != [vocabulary[token]]:
            return False
    return True


def _make_slots(merges: Merges) -> tuple[npt.NDArray[np.uint32], int]:
    """Return the hash table, (slots, 4), with linear probing, and the slots that a search needs at most."""
    size = 1 << max(1, (len(merges) * 3 // 2).bit_length())
    slots = np.full((size, 4), _NO_TOKEN, np.uint32)
    taken = bytearray(size)
    most = 1
    for (first, second), (rank, merged) in merges.items():
        value = (first * 0x9E3779B1 ^ second * 0x85EBCA77) & 0xFFFFFFFF
        value ^= value >> 15
        for probe in count():
            slot = (value + probe) % size
            if not taken[slot]:
                taken[slot] = 1
                slots[slot] = first, second, rank, merged
                most = max(most, probe + 1)
                break
    return slots, most


@cache
def _make_classes(*, normalizes: bool) -> npt.NDArray[np.uint8]:
    """Return the class of each code point. With ``normalizes`` texts stay as they are in NFC, or are left."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    classes = np.full(CODE_POINTS, LEAVE, np.uint8)
    seconds = set[str]()
    if normalizes:
        for code in range(CODE_POINTS):
            parts = unicodedata.decomposition(chr(code)).split()
            if len(parts) == 2 and parts[0][0] != "<":
                seconds.add(chr(int(parts[1], 16)))
        seconds |= {*map(chr, (*range(0x1160, 0x1200), *range(0xD7B0, 0xD800)))}  # Hangul's vowels and finals
    for code in certain_code_points():
        character = chr(code)
        if normalizes and (character in seconds or unicodedata.normalize("NFC", character) != character):
            continue
        if len(pieces(f"a{character}")) == 1:
            classes[code] = _LETTER
        elif len(pieces(f"1{character}")) == 1:
            classes[code] = _NUMBER
        elif len(pieces(f"!{character}")) == 1:
            classes[code] = _OTHER
        else:
            classes[code] = _WHITE_SPACE
        if normalizes and unicodedata.combining(character):
            classes[code] |= _MARK
    return classes
