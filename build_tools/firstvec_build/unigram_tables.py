"""Write the tables with which firstvec's own engine tokenizes as Unigram: ``artifacts/FORMAT.md`` describes the file.

SentencePiece's normalizer is context-free up to what one character does to its neighbours. So the tables hold what the
tokenizers package itself makes of each code point alone. A code point that may join its neighbour says so, and the
engine leaves a text to the package where such a neighbour matters.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

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

_MAGIC, _BYTE_ORDER, _VERSION = b"firstuni", 0x01020304, 1
_HEADER = struct.Struct("<8s2IQ4Id4I8I4I16x")
_ITSELF, _NOTHING, _SPACE, _REPLACEMENT, _JOINS = 0, 1, 2, 5, 8
_PREPENDS, _COLLAPSES, _STRIPS_LEFT, _STRIPS_RIGHT = 1, 2, 4, 8
_META = "\u2581"
"""SentencePiece's sign for a space."""
_UNKNOWN_PENALTY = 10.0
"""An unknown character costs so much more than the least likely piece (kUnkPenalty in unigram_model.cc)."""
_MOST_PIECES, _MOST_NODES, _LONGEST_PIECE = (1 << 24) - 1, 1 << 24, 1024
_LONGEST_REPLACEMENT = 63
"""Bytes. Six bits hold the length."""
_CLUSTER_BYTES, _NEVER = 6, 0xFFFFFFFF
"""The package's ``Precompiled`` looks at a grapheme cluster as a whole only if the cluster has less than 6 bytes."""
_WHITE_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000",
) | {*map(chr, range(0x2000, 0x200B))}
"""Unicode's White_Space, which Rust's ``char::is_whitespace`` is."""
_CHARACTER_STEPS = {"Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt"}
_PREPENDED = frozenset((*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0xD4E))
"""Grapheme_Cluster_Break=Prepend in the Basic Multilingual Plane: such a character joins the next one."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the normalizer and the pre-tokenizer do besides mapping characters."""

    steps: tuple[dict[str, Any], ...]
    """Of the normalizer, in JSON: those that map characters."""
    left: tuple[str, ...]
    """Strings that a step replaces."""
    flags: int
    splits_white_space: bool
    """Whether every white space is a space."""
    needs_first: bool
    """Whether only the text's very first character gets a space before it."""
    cluster_bytes: int


def make_tables(package: tokenizers.Tokenizer, prefix_ids: Sequence[int], suffix_ids: Sequence[int]) -> bytes | None:
    """Return the bytes of the file. None: the tokenizer has a part that the engine does not know, or is too large.

    Args:
        package: the tokenizer, whose model is Unigram.
        prefix_ids: ids before every text.
        suffix_ids: ids behind every text.
    """
    # The package writes the scores that it computes with. Those in the file may differ in the last bit.
    document = json.loads(package.to_str())
    model, rules = document["model"], _read_rules(document)
    if rules is None or model["unk_id"] is None or model.get("byte_fallback"):
        return None
    ids = {piece.encode(): number for number, (piece, _) in enumerate(model["vocab"])}
    scores = np.array([score for _, score in model["vocab"]], np.float64)
    left = [*rules.left, *(token["content"] for token in document["added_tokens"])]
    longest = max(map(len, ids))
    if (
        max(len(prefix_ids), len(suffix_ids)) > MOST_SPECIAL
        or max((len(each.encode()) for each in left), default=0) > MOST_BYTES
        or len(scores) > _MOST_PIECES
        or longest > _LONGEST_PIECE
        or not all(ids)
    ):
        return None
    nodes = _make_trie(ids)
    if len(nodes) > _MOST_NODES:
        return None
    normalized = [token["content"] for token in document["added_tokens"] if token["normalized"]]
    entries, replacements = _make_entries(rules, normalized)
    if rules.steps and not (rules.flags & _COLLAPSES and entries[0x0D] == entries[0x0A] == _SPACE):
        left.append("\r\n")  # one cluster of two characters that may join
    pages, characters = make_pages(entries)
    strings = list_strings(left)
    around = (*prefix_ids, *suffix_ids)
    data = join_arrays(
        _HEADER.size,
        nodes.astype("<u4").tobytes(),
        scores.astype("<f8").tobytes(),
        strings,
        pages.astype("<u2").tobytes(),
        characters.astype("<u4").tobytes(),
        replacements,
    )
    _HEADER.pack_into(
        data,
        0,
        *(_MAGIC, _BYTE_ORDER, _VERSION, len(data)),
        *(len(scores), len(nodes), longest, model["unk_id"], float(scores.min()) - _UNKNOWN_PENALTY),
        *(rules.flags, rules.cluster_bytes, len(prefix_ids), len(suffix_ids)),
        *(*around, *[0] * (2 * MOST_SPECIAL - len(around))),
        *(len(left), len(strings), len(characters), len(replacements)),
    )
    return bytes(data)


def _read_rules(document: dict[str, Any]) -> _Rules | None:
    """Return what the normalizer and the pre-tokenizer do. None: the engine does not know a part of them."""
    steps: list[dict[str, Any]] = []
    left: list[str] = []
    flags, collapsed = 0, None
    for step in _flatten(document["normalizer"], "normalizers"):
        kind, pattern = step["type"], step.get("pattern", {})
        if kind in _CHARACTER_STEPS and not flags and collapsed is None:
            steps.append(step)
        elif kind == "Replace" and len(pattern.get("String", "")) > 1 and not (steps or flags or collapsed is not None):
            left.append(pattern["String"])
        elif kind == "Strip" and collapsed is None:
            flags |= _STRIPS_LEFT * step["strip_left"] | _STRIPS_RIGHT * step["strip_right"]
        elif kind == "Replace" and pattern == {"Regex": " {2,}"} and step["content"] in (" ", _META):
            collapsed = step["content"]
            flags |= _COLLAPSES
        else:
            return None
    *before, last = _flatten(document["pre_tokenizer"], "pretokenizers") or [{"type": None}]
    splits_white_space = [step["type"] for step in before] == ["WhitespaceSplit"]
    if (
        (before and not splits_white_space)
        or last["type"] != "Metaspace"
        or last["replacement"] != _META
        or not last.get("split", True)
    ):
        return None
    scheme = last.get("prepend_scheme", "always")
    if scheme == "first" and (splits_white_space or flags & _STRIPS_LEFT):
        return None
    if splits_white_space:
        if collapsed == _META:  # such a sign is no white space
            return None
        flags |= _COLLAPSES | _STRIPS_LEFT | _STRIPS_RIGHT
    if scheme != "never":
        flags |= _PREPENDS
    elif splits_white_space:  # words would join the spaces that the engine puts before them
        return None
    kinds = [step["type"] for step in steps]
    cluster_bytes = 0 if not kinds else _CLUSTER_BYTES if kinds == ["Precompiled"] else _NEVER
    return _Rules(tuple(steps), tuple(left), flags, splits_white_space, scheme == "first", cluster_bytes)


def _flatten(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [each for inner in step[key] for each in _flatten(inner, key)] if step["type"] == "Sequence" else [step]


def _make_trie(ids: Mapping[bytes, int]) -> npt.NDArray[np.uint32]:
    """Return the trie's nodes, (nodes, 2). A node's children follow one another, and then the nodes below the first."""
    pieces = sorted(ids)
    children, ends = [0], [0]
    waiting = [(0, 0, len(pieces), 0)]
    while waiting:
        node, low, high, depth = waiting.pop()
        if len(pieces[low]) == depth:
            ends[node] |= ids[pieces[low]] + 1 << 8
            low += 1
        if low == high:
            continue
        starts = [low]
        byte = pieces[low][depth]
        labels = [byte]
        for number in range(low + 1, high):
            if pieces[number][depth] != byte:
                byte = pieces[number][depth]
                starts.append(number)
                labels.append(byte)
        first = len(children)
        children[node] = first << 8 | len(labels)
        children += [0] * len(labels)
        ends += labels
        below = zip(range(first, first + len(labels)), starts, [*starts[1:], high], strict=True)
        waiting += reversed([(child, begin, end, depth + 1) for child, begin, end in below])
        if first + len(labels) > _MOST_NODES:
            break
    return np.array([children, ends], np.uint32).T


def _make_entries(rules: _Rules, normalized: Sequence[str]) -> tuple[npt.NDArray[np.uint32], bytes]:
    """Return the entry of each code point, and the text of all replacements.

    Args:
        rules: how characters are mapped.
        normalized: added tokens that the package looks for in the normalized text.
    """
    sequence = json.dumps({"type": "Sequence", "normalizers": rules.steps})
    normalizer = _load_normalizer(sequence) if rules.steps else None
    signs = {sign for token in normalized for sign in (normalizer.normalize_str(token) if normalizer else token)}
    joining = _find_joining(decomposes=rules.cluster_bytes == _NEVER) if rules.steps else frozenset()
    strips = rules.flags & (_STRIPS_LEFT | _STRIPS_RIGHT)
    entries = np.full(CODE_POINTS, LEAVE, np.uint32)
    replacements, places = bytearray(), dict[str, int]()
    for code in certain_code_points():
        character = chr(code)
        if character == _META or code in _PREPENDED:
            continue
        form = normalizer.normalize_str(character) if normalizer else character
        if form == character and form not in _WHITE_SPACE:
            entries[code] = _ITSELF
        else:
            if rules.splits_white_space:
                form = "".join(" " if each in _WHITE_SPACE else each for each in form)
            strange = strips and not _WHITE_SPACE.isdisjoint(form.replace(" ", ""))
            may_be_token = form != character and (not form or not signs.isdisjoint(form))
            if _META in form or strange or (signs and may_be_token) or (rules.needs_first and not form):
                continue
            if form in ("", " "):
                entries[code] = _SPACE if form else _NOTHING
            elif len(form.encode()) <= _LONGEST_REPLACEMENT:
                if form not in places:
                    places[form] = len(replacements)
                    replacements += form.encode()
                entries[code] = _REPLACEMENT | len(form.encode()) << 4 | places[form] << 10
            else:
                continue
        if code in joining:
            entries[code] |= _JOINS
    return entries, bytes(replacements)


def _load_normalizer(sequence: str) -> Any:
    """Return the normalizer of a JSON text."""
    empty: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    empty |= {"pre_tokenizer": None, "post_processor": None, "decoder": None}
    empty |= {"model": {"type": "Unigram", "unk_id": None, "vocab": []}}
    return tokenizers.Tokenizer.from_str(json.dumps(empty | {"normalizer": json.loads(sequence)})).normalizer


@cache
def _find_joining(*, decomposes: bool) -> frozenset[int]:
    """Return the code points that may be one grapheme cluster with the character before.

    The set holds all marks and format characters, Hangul's jamo, and the other characters that UAX #29 names. With
    ``decomposes`` it also holds each character whose decomposition may compose or change places with what is before.
    """
    found = {0xE33, 0xEB3, 0xFF9E, 0xFF9F, *range(0x1F1E6, 0x1F200), *range(0x1F3FB, 0x1F400)}
    for low, high in ((0x1100, 0x11FF), (0xA960, 0xA97F), (0xD7B0, 0xD7FF)):
        found.update(range(low, high + 1))
    old = unicodedata.ucd_3_2_0
    seconds = set[str]()
    for code in range(CODE_POINTS):
        character = chr(code)
        if unicodedata.category(character)[0] == "M" or old.category(character)[0] == "M":
            found.add(code)
        if unicodedata.category(character) == "Cf":
            found.add(code)
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and parts[0][0] != "<":
            seconds.add(chr(int(parts[1], 16)))
    if decomposes:
        for code in range(CODE_POINTS):
            first = unicodedata.normalize("NFKD", chr(code))[0] if not 0xD800 <= code < 0xE000 else "a"
            if unicodedata.combining(first) or first in seconds or ord(first) in found:
                found.add(code)
    return frozenset(found)
