"""Write the rules and the vocabulary with which the runtime tokenizes without the tokenizers package."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from firstvec.bundle.manifest import File, QuickTables, WordPiece
from firstvec.machine import native
from firstvec.text.tokenizer import FAMILIES
from firstvec.text.wordpiece import QuickTokenizer
from firstvec_build import byte_pair_tables, publishing, unigram_tables, wordpiece_tables
from firstvec_build.text_tables import certain_code_points

if TYPE_CHECKING:
    from firstvec.text.tokenizer import Quick

VOCABULARY_NAME = "vocab.txt"
"""The name that BERT's own release and Hugging Face repositories use."""
TABLES_NAME = "native/wordpiece.fvt"
_GENERATED_TEXTS = 20_000


def write_vocabulary(tokenizer_json: str, folder: Path, texts: Sequence[str]) -> WordPiece | None:
    """Write the vocabulary into ``folder`` and return the rules. None: the quick tokenizer does not fit this model.

    The quick tokenizer's ids are compared with those of the tokenizers package, on ``texts`` and on generated ones.
    """
    document = json.loads(tokenizer_json)
    if not _is_supported(document):
        return None
    ids: dict[str, int] = document["model"]["vocab"]
    vocabulary = "".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__))
    (folder / VOCABULARY_NAME).write_text(vocabulary, "utf-8", newline="")
    rules = _make_rules(document, publishing.describe_file(folder, VOCABULARY_NAME))
    compared = [*texts, *generate_texts(_GENERATED_TEXTS, random.Random(0), [*ids])]
    package = tokenizers.Tokenizer.from_str(tokenizer_json)
    length = int(document["truncation"]["max_length"])
    expected = [encoding.ids for encoding in package.encode_batch_fast(compared)]
    if find_disagreement(QuickTokenizer(rules, vocabulary, length), compared, expected) is not None:
        (folder / VOCABULARY_NAME).unlink()
        return None
    if (tables := wordpiece_tables.make_tables(rules, vocabulary, _plain_added_ids(document))) is None:
        return rules
    path = folder / TABLES_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tables)
    if (module := native.module()) is not None:
        with path.open("rb") as stream:
            quick = module.WordPiece(stream.fileno(), len(tables), length)
        assert find_disagreement(quick, compared, expected) is None, "the tokenizer in C is not the package's"
    return rules.replace(tables=publishing.describe_file(folder, TABLES_NAME))


_WRITERS: dict[str, tuple[str, Any]] = {
    "Unigram": ("unigram", unigram_tables.make_tables),
    "BPE": ("byte_pairs", byte_pair_tables.make_tables),
}
"""Type of the model in a tokenizer.json → family in the manifest, and the function that makes its tables."""


def write_tables(tokenizer_json: str, folder: Path, texts: Sequence[str]) -> QuickTables | None:
    """Write the tables of another tokenizer than WordPiece into ``folder``. None: the package serves this model.

    The ids of the engine are compared with those of the tokenizers package, on ``texts``, on generated ones, and on
    every code point. Without the engine nothing can be compared, and nothing is written.
    """
    document, module = json.loads(tokenizer_json), native.module()
    outer = find_outer_ids(document["post_processor"])
    truncation = document["truncation"] or {}
    if module is None or document["model"]["type"] not in _WRITERS or outer is None:
        return None
    if truncation.get("direction", "Right") != "Right":
        return None
    family, make_tables = _WRITERS[document["model"]["type"]]
    package = tokenizers.Tokenizer.from_str(tokenizer_json)
    if (tables := make_tables(package, *outer)) is None:
        return None
    with tempfile.TemporaryFile() as stream:
        stream.write(tables)
        stream.flush()
        quick = getattr(module, FAMILIES[family])(stream.fileno(), len(tables), int(truncation["max_length"]))
    space = "\u2581" if family == "unigram" else "\u0120"
    words = sorted(word.replace(space, " ") for word in package.get_vocab(with_added_tokens=False))
    compared = [*texts, *generate_texts(_GENERATED_TEXTS, random.Random(0), words), *list_characters()]
    if find_disagreement(quick, compared, [each.ids for each in package.encode_batch_fast(compared)]) is not None:
        return None
    path = folder / f"native/{family}.fvt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tables)
    return QuickTables(family=family, tables=publishing.describe_file(folder, f"native/{family}.fvt"))


def list_characters() -> Iterator[str]:
    """Yield texts that hold every code point of which a quick tokenizer may be certain, 16 in each text.

    A code point stands between letters and between ideographs, because a neighbour's length can matter.
    """
    certain = [*map(chr, certain_code_points())]
    for start in range(0, len(certain), 16):
        some = certain[start : start + 16]
        yield " ".join(f"a{character}b" for character in some)
        yield " ".join(f"\u65e5{character}\u672c" for character in some)


def find_disagreement(quick: Quick, texts: Sequence[str], expected: Sequence[list[int]]) -> str | None:
    """Return the first text for which the quick tokenizer gives other ids than expected. None: no text.

    A text that the quick tokenizer leaves to the package does not count.
    """
    for text, package_ids in zip(texts, expected, strict=True):
        ids = quick.tokenize(text)
        if ids is not None and ids != package_ids:
            return text
    return None


def _is_supported(document: dict[str, Any]) -> bool:
    """Return whether the quick tokenizer has every part of the tokenizer."""
    normalizer, model = document["normalizer"] or {}, document["model"]
    return (
        model["type"] == "WordPiece"
        and model["continuing_subword_prefix"] == "##"
        and sorted(model["vocab"].values()) == list(range(len(model["vocab"])))
        and not any(character in token for token in model["vocab"] for character in "\r\n")
        and normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and normalizer["handle_chinese_chars"]
        and (document["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        # The quick tokenizer searches the unchanged text for added tokens, and leaves a text with one to the package.
        and not any(token["normalized"] for token in document["added_tokens"])
        and find_outer_ids(document["post_processor"]) is not None
    )


def _make_rules(document: dict[str, Any], vocabulary: File) -> WordPiece:
    normalizer, model = document["normalizer"], document["model"]
    strip_accents = normalizer["strip_accents"]
    prefix_ids, suffix_ids = find_outer_ids(document["post_processor"]) or ((), ())
    return WordPiece(
        vocabulary=vocabulary,
        lowercase=normalizer["lowercase"],
        strip_accents=normalizer["lowercase"] if strip_accents is None else strip_accents,
        unk_id=model["vocab"][model["unk_token"]],
        max_input_chars_per_word=model["max_input_chars_per_word"],
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        added_tokens=tuple(token["content"] for token in document["added_tokens"]),
    )


def _plain_added_ids(document: dict[str, Any]) -> list[int] | None:
    """Return the ids of the added tokens, if each begins wherever its text is. None: the package judges them.

    White space around an added token, which ``lstrip`` and ``rstrip`` remove, has no ids in any case.
    """
    added = document["added_tokens"]
    is_plain = not any(token["single_word"] or any(map(str.isspace, token["content"])) for token in added)
    return [token["id"] for token in added] if is_plain else None


def find_outer_ids(post_processor: dict[str, Any] | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the ids that a post-processor puts before and behind a text. None: its kind is unknown."""
    kind = (post_processor or {}).get("type")
    if post_processor is None or kind == "ByteLevel":  # which changes offsets only
        return (), ()
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (post_processor["cls"][1],), (post_processor["sep"][1],)
    if kind == "Sequence":
        found = [find_outer_ids(each) for each in post_processor["processors"]]
        if None in found or sum(each != ((), ()) for each in found) > 1:
            return None
        return next((each for each in found if each != ((), ())), ((), ()))
    if kind != "TemplateProcessing":
        return None
    sides: tuple[list[int], list[int]] = ([], [])
    texts_seen = 0
    for piece in post_processor["single"]:
        if "Sequence" in piece:
            texts_seen += 1
        else:
            ids = post_processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
            sides[min(texts_seen, 1)].extend(ids)
    return (tuple(sides[0]), tuple(sides[1])) if texts_seen == 1 else None


def generate_texts(count: int, generator: random.Random, words: Sequence[str]) -> Iterator[str]:
    """Yield texts of words, pieces of them, and characters of every kind that a tokenizer may treat differently."""
    for _ in range(count):
        parts = []
        for _ in range(generator.randint(1, 6)):
            kind = generator.random()
            if kind < 0.5:
                parts.append(_vary(generator.choice(words).removeprefix("##"), generator))
            elif kind < 0.8:
                low, high = generator.choice(_SCRIPTS) if generator.random() < 0.99 else _ANYTHING
                parts.append("".join(chr(generator.randint(low, high)) for _ in range(generator.randint(1, 8))))
            else:
                parts.append("".join(generator.choices(_AWKWARD, k=generator.randint(1, 4))))
            parts.append(generator.choice(("", " ", " ", "  ", "\t", "\n", "-", ".", "\u3000", "\u00a0")))
        yield "".join(parts)


def _vary(word: str, generator: random.Random) -> str:
    return generator.choice((word, word, word.upper(), word.title(), word * generator.randint(1, 30)))


_SCRIPTS = (
    # Unicode blocks: ASCII, Latin-1, Latin Extended-A and -B, combining marks, Greek, Cyrillic, Hebrew, Arabic,
    # Devanagari, Thai, Hangul jamo, Latin Extended Additional, punctuation, currency, arrows and mathematics,
    # CJK punctuation and kana, ideographs, Hangul, private use, compatibility ideographs and forms, full width,
    # emoji, supplementary ideographs.
    *((0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF)),
    *((0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F)),
    *((0x20A0, 0x20CF), (0x2190, 0x22FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF)),
    *((0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFF00, 0xFFEF), (0x1F300, 0x1F6FF), (0x20000, 0x2A6DF)),
)
_ANYTHING = (0xE000, 0x10FFFF)
_AWKWARD = (
    # controls, soft hyphen, letters whose case is special, Greek question mark, sigmas, zero-width and line separators,
    # Ohm and Kelvin signs, ligature, variation selector, byte-order mark, replacement character
    "\u0000\u0007\u000b\u0085\u00ad\u0130\u0131\u017f\u01c5\u0345\u037e\u03a3\u03c2\u1e9e\u200b\u200d\u2028"
    "\u2126\u212a\ufb01\ufe0f\ufeff\ufffd'’`^~[]#"
)
