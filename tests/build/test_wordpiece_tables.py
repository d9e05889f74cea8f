"""The tables of the tokenizer in C: the same ids as the package and as the tokenizer in Python, limits of the file."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers

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


def open_tables(rules: WordPiece, vocabulary: str, max_seq_length: int, added_ids: Sequence[int] | None = None) -> Any:
    tables = make_tables(rules, vocabulary, added_ids)
    assert tables is not None
    with tempfile.TemporaryFile() as stream:
        stream.write(tables)
        stream.flush()
        return _native.WordPiece(stream.fileno(), len(tables), max_seq_length)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
def test_every_code_point_has_the_ids_of_the_package_and_of_the_tokenizer_in_python(
    bundle: Path, lowercase: bool, strip_accents: bool
) -> None:
    """The tokenizer in Python leaves some code points to the package. The tables leave none."""
    vocabulary = (bundle / "vocab.txt").read_text("utf-8")
    rules = Manifest.read(bundle).wordpiece
    assert rules is not None
    rules = rules.replace(lowercase=lowercase, strip_accents=strip_accents)
    quick, native = QuickTokenizer(rules, vocabulary, 256), open_tables(rules, vocabulary, 256)
    texts = [f"ab{chr(code)}ing {chr(code)}" for code in (*range(0xD800), *range(0xE000, 0x110000))]
    for text in texts:
        assert quick.tokenize(text) in (None, native.tokenize(text)), ascii(text)
    package = open_package(bundle, 256, lowercase=lowercase, strip_accents=strip_accents)
    joined = [" ".join(texts[start : start + 16]) for start in range(0, len(texts), 16)]
    for text, encoding in zip(joined, package.encode_batch_fast(joined), strict=True):
        assert len(encoding.ids) < 256, ascii(text)
        assert native.tokenize(text) == encoding.ids, ascii(text)


def open_package(bundle: Path, length: int, *, added: Any = None, **normalizer: bool) -> Any:
    """Open the bundle's tokenizer.json in the tokenizers package, with some values changed."""
    document = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    document["normalizer"].update(normalizer)
    document["added_tokens"] = added or document["added_tokens"]
    package = tokenizers.Tokenizer.from_str(json.dumps(document))
    package.enable_truncation(length)
    return package


ADDED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[SEPARATE]", "P]x")
"""The names of BERT's special tokens, one that begins as another one does, and one that overlaps another one."""


def test_texts_with_added_tokens_have_the_ids_of_the_package(bundle: Path, request: pytest.FixtureRequest) -> None:
    """Also where white space beside a token belongs to it, and where other characters stand in the text."""
    count = 400_000 if request.config.getoption("--faults") else 10_000
    vocabulary = (bundle / "vocab.txt").read_text("utf-8")
    rules = Manifest.read(bundle).wordpiece
    assert rules is not None
    words, source = vocabulary.split("\n")[:-1], random.Random(20261130)
    ids = {word: number for number, word in enumerate(words)}
    added_ids = [ids.setdefault(token, len(ids)) for token in ADDED]
    texts = []
    for text in generate_texts(count, source, words):
        parts = list(text)
        for _ in range(source.randint(1, 4)):
            parts.insert(source.randint(0, len(parts)), source.choice((*ADDED, "[sep]", "[SE", "SEP]x", " ", "\x0b")))
        parts.insert(source.randint(0, len(parts)), chr(source.choice((0x378, 0x1E900, 0x9CE, 0x31350, 0xFFFF))))
        texts.append("".join(parts))
    for strips in (False, True):
        kind = {"single_word": False, "lstrip": strips, "rstrip": strips, "normalized": False, "special": True}
        added = [{"id": ids[token], "content": token, **kind} for token in ADDED]
        for length in (256, 8):
            package = open_package(bundle, length, added=added)
            native = open_tables(rules.replace(added_tokens=ADDED), vocabulary, length, added_ids)
            for text, encoding in zip(texts, package.encode_batch_fast(texts), strict=True):
                assert native.tokenize(text) == encoding.ids, ascii(text)


def test_generated_texts_have_the_ids_of_the_tokenizer_in_python(bundle: Path, request: pytest.FixtureRequest) -> None:
    vocabulary = (bundle / "vocab.txt").read_text("utf-8")
    rules = Manifest.read(bundle).wordpiece
    assert rules is not None
    count = 1_000_000 if request.config.getoption("--faults") else 20_000
    for length in (256, 8):
        quick, native = QuickTokenizer(rules, vocabulary, length), open_tables(rules, vocabulary, length)
        for text in generate_texts(count, random.Random(length), vocabulary.split("\n")):
            ids, expected = native.tokenize(text), quick.tokenize(text)
            # The tokenizer in C stops at the limit, and knows more characters.
            assert expected is None or ids == expected, text


def test_long_words_added_tokens_and_truncation() -> None:
    native = open_tables(RULES, "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n##a\n", 6)
    assert native.tokenize("") == [2, 3]
    assert native.tokenize("A" * 100) == [2, 4, 5, 5, 5, 3]
    assert native.tokenize("a" * 101) == [2, 1, 3]
    assert native.tokenize("a b a a a a a a") == [2, 4, 1, 4, 4, 3]
    assert native.tokenize("a [MASK] a") is None
    with_ids = open_tables(RULES, "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n##a\n", 6, (0, 1, 2, 3, 9))
    assert with_ids.tokenize("a[MASK]a") == [2, 4, 9, 4, 3]
    assert with_ids.tokenize("[MASK][SEP] [PAD]x[CLS]") == [2, 9, 3, 0, 1, 3]
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
