"""Small random weights files and tables files, made in memory."""

from __future__ import annotations

import json
import struct
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from firstvec.bundle.manifest import WordPiece
from firstvec_build.byte_pair_tables import make_tables as make_pairs_tables
from firstvec_build.unigram_tables import make_tables as make_unigram_tables
from firstvec_build.wordpiece_tables import make_tables

_HEADER = struct.Struct("<8s2IQ10If60x")
FIELDS = (
    *("byte_order", "version", "file_bytes", "precision", "layers", "hidden", "heads", "intermediate", "vocabulary"),
    *("positions", "activation", "pooling", "unit_length", "epsilon"),
)
"""The fields of a weights file's header behind the magic bytes, in their order."""
_WORDS_HEADER = struct.Struct("<8s2IQ9I8I4I16x")
WORDS_FIELDS = (
    *("byte_order", "version", "file_bytes", "vocabulary", "slots", "most_probes", "string_bytes", "longest_token"),
    *("most_characters", "unknown", "prefixes", "suffixes", *(f"around_{i}" for i in range(8))),
    *("added_tokens", "added_bytes", "pages", "replacement_bytes"),
)
"""The fields of a tables file's header behind the magic bytes, in their order."""
UNIGRAM_HEADER = struct.Struct("<8s2IQ22I16x")
UNIGRAM_FIELDS = (
    *(
        "byte_order",
        "version",
        "file_bytes",
        "vocabulary",
        "nodes",
        "longest_piece",
        "unknown",
        "score_low",
        "score_high",
    ),
    *("flags", "cluster_bytes", "prefixes", "suffixes", *(f"around_{i}" for i in range(8))),
    *("left", "left_bytes", "pages", "replacement_bytes"),
)
"""The fields of a Unigram file's header behind the magic bytes, in their order."""
PAIRS_HEADER = struct.Struct("<8s2IQ18I32x")
PAIRS_FIELDS = (
    *("byte_order", "version", "file_bytes", "slots", "most_probes", "split", "most_digits", "adds_space"),
    *("prefixes", "suffixes", *(f"around_{i}" for i in range(8)), "left", "left_bytes", "pages"),
)
"""The fields of a byte-pair file's header behind the magic bytes, in their order."""
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def make_weights(
    *,
    seed: int = 0,
    precision: int = 1,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 2,
    intermediate: int = 96,
    vocabulary: int = 200,
    positions: int = 64,
    activation: int = 1,
    pooling: int = 0,
    unit_length: int = 1,
) -> bytes:
    """Return a weights file of random numbers. ``precision`` is 0 for fp32 and 1 for INT8."""
    random = np.random.default_rng(seed)
    data = bytearray(_HEADER.size)

    def put(values: npt.NDArray[Any]) -> None:
        data.extend(bytes(-len(data) % 64) + values.astype(values.dtype.newbyteorder("<")).tobytes())

    def put_floats(count: int, mean: float = 0.0, spread: float = 0.2) -> None:
        put(random.normal(mean, spread, count).astype(np.float32))

    def put_normalization() -> None:
        put_floats(hidden, mean=1.0)
        put_floats(hidden)

    def put_matrix(columns: int, depth: int, *, has_multipliers: bool) -> None:
        if precision == 0:
            put_floats(columns * depth)
        else:
            # artifacts/FORMAT.md: the sizes of two neighbouring weights add up to 128 at most
            integers = random.integers(-64, 65, (columns // 16, depth // 4, 16, 4), np.int8)
            put(integers)
            put(random.uniform(0.001, 0.003, columns).astype(np.float32))
            put(integers.astype(np.int64).sum(axis=(1, 3)).reshape(-1).astype(np.float32))
            if has_multipliers:
                put(random.uniform(0.5, 2.0, depth).astype(np.float32))
        put_floats(columns)

    if precision == 0:
        put_floats(vocabulary * hidden)
    else:
        put(random.integers(-127, 128, vocabulary * hidden, np.int8))
        put(random.uniform(0.005, 0.015, vocabulary).astype(np.float32))
    if layers:
        put_floats(positions * hidden)
        put_normalization()
    for _ in range(layers):
        put_matrix(3 * hidden, hidden, has_multipliers=True)
        put_matrix(hidden, hidden, has_multipliers=False)
        put_normalization()
        put_matrix(intermediate, hidden, has_multipliers=True)
        put_matrix(hidden, intermediate, has_multipliers=False)
        put_normalization()
    sizes = (precision, layers, hidden, heads, intermediate, vocabulary, positions)
    flags = (activation, pooling, unit_length)
    _HEADER.pack_into(data, 0, b"firstvec", 0x01020304, 1, len(data), *sizes, *flags, 1e-12)
    return bytes(data)


def set_field(data: bytes, name: str, value: float, fields: tuple[str, ...] = FIELDS) -> bytes:
    """Return the file with another number in a field of its header."""
    index = fields.index(name)
    kind = "<Q" if name == "file_bytes" else "<f" if name == "epsilon" else "<I"
    at = 8 + 4 * index + 4 * (index > fields.index("file_bytes"))
    return data[:at] + struct.pack(kind, value) + data[at + struct.calcsize(kind) :]


def words(count: int) -> list[str]:
    """Return a vocabulary of so many tokens: specials, letters, pieces, and words of two to four letters."""
    letters = "etaoinshrdlucmfwypvbgkqxjz"
    tokens = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters), *"0123456789.,!?é日本語"]
    size = 2
    while len(tokens) < count:
        for number in range(len(letters) ** size):
            word = "".join(letters[number // len(letters) ** place % len(letters)] for place in range(size))
            tokens += [word, f"##{word}"][: 1 + number % 2]
            if len(tokens) >= count:
                break
        size += 1
    return tokens[:count]


@cache
def make_words(
    count: int = 200, *, added_tokens: tuple[str, ...] = SPECIALS, longest: int = 100, has_ids: bool = True
) -> bytes:
    """Return a tables file with `words` and BERT's rules, and with the ids of the added tokens or without them."""
    rules = WordPiece(
        vocabulary=None,  # type: ignore[arg-type]
        tables=None,
        lowercase=True,
        strip_accents=True,
        unk_id=1,
        max_input_chars_per_word=longest,
        prefix_ids=(2,),
        suffix_ids=(3,),
        added_tokens=added_tokens,
    )
    data = make_tables(rules, "\n".join(words(count)) + "\n", range(len(added_tokens)) if has_ids else None)
    assert data is not None
    return data


def make_text(random: np.random.Generator, most_words: int = 60) -> str:
    """Return a random text: mostly words of few letters, some of any script, some long."""
    pools = (
        "etaoinshrdlu",
        "etaoinshrdlucmfwypvbgkqxjz",
        "0123456789.,!?-",
        "ÉéÀüßñçØ",
        "日本語中文字",
        "АБвгд",
        "😀🎉∑≠",
    )
    chosen = random.choice(len(pools), random.integers(0, most_words), p=(0.5, 0.3, 0.1, 0.04, 0.03, 0.02, 0.01))
    return " ".join("".join(random.choice([*pools[pool]], random.integers(1, 9))) for pool in chosen)


def make_small_words() -> bytes:
    """Return a tables file of 20 kB: all code points from 2^8 share one page, which is left to the package."""
    data = make_words(90, longest=12)
    header = list(_WORDS_HEADER.unpack_from(data))
    arrays = split_words(data)
    pages = np.frombuffer(arrays["pages"], np.uint16).copy()
    characters = np.frombuffer(arrays["characters"], np.uint32).reshape(-1, 128)
    kept = np.concatenate([characters[pages[:2]], np.full((1, 128), 4, np.uint32)])
    pages[...] = 2
    pages[:2] = 0, 1
    arrays |= {"pages": pages.tobytes(), "characters": kept.tobytes()}
    out = bytearray(_WORDS_HEADER.size)
    for array in arrays.values():
        out += bytes(-len(out) % 64) + array
    header[3], header[-2] = len(out), len(kept)
    _WORDS_HEADER.pack_into(out, 0, *header)
    return bytes(out)


def make_small_unigram() -> bytes:
    """Return a Unigram file of 20 kB: all code points from 2^8 share one page, which is left to the package."""
    meta = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    pieces = [piece.replace("##", "\u2581") for piece in words(90)[4:]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], *([piece, -len(piece) / 3] for piece in pieces)]}
    whole = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None, "decoder": None}
    whole |= {"normalizer": {"type": "NFKC"}, "pre_tokenizer": meta, "model": model | {"byte_fallback": False}}
    whole["added_tokens"] = [
        {"id": 0, "content": "<unk>", "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
    ]
    data = make_unigram_tables(tokenizers.Tokenizer.from_str(json.dumps(whole)), (1, 2), (3,))
    assert data is not None
    arrays = split_unigram(data)
    pages = np.frombuffer(arrays["pages"], np.uint16).copy()
    characters = np.frombuffer(arrays["characters"], np.uint32).reshape(-1, 128)
    kept = np.concatenate([characters[pages[:2]], np.full((1, 128), 4, np.uint32)])
    pages[...] = 2
    pages[:2] = 0, 1
    arrays |= {"pages": pages.tobytes(), "characters": kept.tobytes(), "replacements": arrays["replacements"][:400]}
    out = bytearray(UNIGRAM_HEADER.size)
    for array in arrays.values():
        out += bytes(-len(out) % 64) + array
    header = dict(zip(UNIGRAM_FIELDS, UNIGRAM_HEADER.unpack_from(data)[1:], strict=True))
    header |= {"file_bytes": len(out), "pages": len(kept), "replacement_bytes": len(arrays["replacements"])}
    UNIGRAM_HEADER.pack_into(out, 0, data[:8], *header.values())
    return bytes(out)


def split_unigram(data: bytes) -> dict[str, bytes]:
    """Return the arrays of a Unigram file, in their order."""
    header = dict(zip(UNIGRAM_FIELDS, UNIGRAM_HEADER.unpack_from(data)[1:], strict=True))
    sizes = {
        "nodes": 8 * header["nodes"],
        "scores": 8 * header["vocabulary"],
        "left": header["left_bytes"],
        "pages": 2 * 0x110000 // 128,
        "characters": 512 * header["pages"],
        "replacements": header["replacement_bytes"],
    }
    return _split(data, sizes)


def make_small_pairs() -> bytes:
    """Return a byte-pair file of 30 kB: all code points from 2^8 share one page, which is left to the package."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words(200))], trainer)
    data = make_pairs_tables(tokenizer, (1, 2), (3,))
    assert data is not None
    arrays = split_pairs(data)
    pages = np.frombuffer(arrays["pages"], np.uint16).copy()
    classes = np.frombuffer(arrays["classes"], np.uint8).reshape(-1, 128)
    kept = np.concatenate([classes[pages[:2]], np.full((1, 128), 4, np.uint8)])
    pages[...] = 2
    pages[:2] = 0, 1
    arrays |= {"pages": pages.tobytes(), "classes": kept.tobytes()}
    out = bytearray(PAIRS_HEADER.size)
    for array in arrays.values():
        out += bytes(-len(out) % 64) + array
    header = dict(zip(PAIRS_FIELDS, PAIRS_HEADER.unpack_from(data)[1:], strict=True))
    PAIRS_HEADER.pack_into(out, 0, data[:8], *(header | {"file_bytes": len(out), "pages": len(kept)}).values())
    return bytes(out)


def split_pairs(data: bytes) -> dict[str, bytes]:
    """Return the arrays of a byte-pair file, in their order."""
    header = dict(zip(PAIRS_FIELDS, PAIRS_HEADER.unpack_from(data)[1:], strict=True))
    sizes = {
        "bytes": 4 * 256,
        "slots": 16 * header["slots"],
        "left": header["left_bytes"],
        "pages": 2 * 0x110000 // 128,
        "classes": 128 * header["pages"],
    }
    return _split(data, sizes)


def split_words(data: bytes) -> dict[str, bytes]:
    """Return the arrays of a tables file, in their order."""
    header = dict(zip(WORDS_FIELDS, _WORDS_HEADER.unpack_from(data)[1:], strict=True))
    sizes = {
        "slots": 4 * header["slots"],
        "tokens": 4 * header["vocabulary"],
        "strings": header["string_bytes"],
        "added": header["added_bytes"],
        "pages": 2 * 0x110000 // 128,
        "characters": 512 * header["pages"],
        "replacements": header["replacement_bytes"],
    }
    return _split(data, sizes)


def _split(data: bytes, sizes: dict[str, int]) -> dict[str, bytes]:
    arrays, at = {}, 128
    for name, size in sizes.items():
        at += -at % 64
        arrays[name] = data[at : at + size]
        at += size
    assert at == len(data)
    return arrays
