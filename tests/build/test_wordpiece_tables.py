"""The tables of the tokenizer in C: the same ids as the tokenizer in Python, and limits of the file."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from firstvec import Manifest, _native
from firstvec.bundle.manifest import File, WordPiece
from firstvec.text.wordpiece import QuickTokenizer
from firstvec_build.quick_tokenizer import generate_texts
from firstvec_build.wordpiece_tables import make_tables

RULES = WordPiece(
    vocabulary=File(path="vocab.txt", size=1, sha256="0" * 64),
    tables=None,
    lowercase=True,
    strip_accents=True,
    unk_id=1,
    max_input_chars_per_word=100,
    prefix_ids=(2,),
    suffix_ids=(3,),
    added_tokens=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
)


def open_tables(rules: WordPiece, vocabulary: str, max_seq_length: int) -> Any:
    tables = make_tables(rules, vocabulary)
    assert tables is not None
    with tempfile.TemporaryFile() as stream:
        stream.write(tables)
        stream.flush()
        return _native.WordPiece(stream.fileno(), len(tables), max_seq_length)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
def test_every_code_point_has_the_ids_of_the_tokenizer_in_python(
    bundle: Path, lowercase: bool, strip_accents: bool
) -> None:
    vocabulary = (bundle / "vocab.txt").read_text("utf-8")
    rules = Manifest.read(bundle).wordpiece
    assert rules is not None
    rules = rules.replace(lowercase=lowercase, strip_accents=strip_accents)
    quick, native = QuickTokenizer(rules, vocabulary, 256), open_tables(rules, vocabulary, 256)
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        text = f"ab{chr(code)}ing {chr(code)}"
        assert native.tokenize(text) == quick.tokenize(text), hex(code)


def test_generated_texts_have_the_ids_of_the_tokenizer_in_python(bundle: Path, request: pytest.FixtureRequest) -> None:
    vocabulary = (bundle / "vocab.txt").read_text("utf-8")
    rules = Manifest.read(bundle).wordpiece
    assert rules is not None
    count = 1_000_000 if request.config.getoption("--faults") else 20_000
    for length in (256, 8):
        quick, native = QuickTokenizer(rules, vocabulary, length), open_tables(rules, vocabulary, length)
        for text in generate_texts(count, random.Random(length), vocabulary.split("\n")):
            ids, expected = native.tokenize(text), quick.tokenize(text)
            # The tokenizer in C stops at the limit, so a strange character behind it does not matter.
            assert ids == expected or (expected is None and ids is not None and len(ids) == length), text


def test_long_words_added_tokens_and_truncation() -> None:
    native = open_tables(RULES, "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n##a\n", 6)
    assert native.tokenize("") == [2, 3]
    assert native.tokenize("A" * 100) == [2, 4, 5, 5, 5, 3]
    assert native.tokenize("a" * 101) == [2, 1, 3]
    assert native.tokenize("a b a a a a a a") == [2, 4, 1, 4, 4, 3]
    assert native.tokenize("a [MASK] a") is None
    assert native.tokenize("x" * 1_000_000) == [2, 1, 3]
    with pytest.raises(UnicodeEncodeError):
        native.tokenize("\ud800")
    with pytest.raises(TypeError):
        native.tokenize(b"bytes")


@pytest.mark.parametrize(
    "changes",
    [
        {"prefix_ids": (1, 2, 3, 4, 5)},
        {"suffix_ids": (1, 2, 3, 4, 5)},
        {"max_input_chars_per_word": 257},
        {"added_tokens": ("x" * 256,)},
    ],
)
def test_rules_beyond_the_limits_of_the_file_give_no_tables(changes: dict[str, Any]) -> None:
    assert make_tables(RULES.replace(**changes), "a\nb\n") is None


def test_a_token_beyond_the_limit_gives_no_tables() -> None:
    assert make_tables(RULES, "a\n" + "b" * 256 + "\n") is None


def test_the_same_rules_give_the_same_bytes() -> None:
    assert make_tables(RULES, "a\nb\n##c\n") == make_tables(RULES, "a\nb\n##c\n")
