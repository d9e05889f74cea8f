"""The quick tokenizer gives the ids of the tokenizers package, or None."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from firstvec import Manifest
from firstvec.bundle.manifest import WordPiece
from firstvec.text.tokenizer import Tokenizer
from firstvec.text.wordpiece import QuickTokenizer
from firstvec_build.quality import evaluation_sentences
from firstvec_build.quick_tokenizer import generate_texts
from tests.conftest import Fresh

SURROGATES = range(0xD800, 0xE000)
EVERY_CHARACTER = [chr(code) for code in range(0x110000) if code not in SURROGATES]


@pytest.fixture(scope="module")
def package(bundle: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))


@pytest.fixture(scope="module")
def rules(bundle: Path) -> WordPiece:
    found = Manifest.read(bundle).wordpiece
    assert found is not None
    return found


@pytest.fixture(scope="module")
def vocabulary(bundle: Path) -> str:
    return (bundle / "vocab.txt").read_text("utf-8")


@pytest.fixture(scope="module")
def quick(rules: WordPiece, vocabulary: str) -> QuickTokenizer:
    return QuickTokenizer(rules, vocabulary, 256)


def compare(quick: QuickTokenizer, package: tokenizers.Tokenizer, texts: Sequence[str]) -> int:
    """Assert that the ids agree. Return how many texts were left to the package."""
    left = 0
    for text, encoding in zip(texts, package.encode_batch_fast(texts), strict=True):
        ids = quick.tokenize(text)
        left += ids is None
        assert ids is None or ids == encoding.ids, ascii(text)
    return left


@pytest.mark.parametrize(
    ("lowercase", "strip_accents"), [(True, True), (True, False), (False, False), (False, True)], ids=str
)
def test_every_character_there_is(lowercase: bool, strip_accents: bool, rules: WordPiece, vocabulary: str) -> None:
    rules = rules.replace(lowercase=lowercase, strip_accents=strip_accents)
    quick = QuickTokenizer(rules, vocabulary, 256)
    ids = {token: index for index, token in enumerate(vocabulary.split("\n")[:-1])}
    package = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    package.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    package.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    package.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    left = compare(quick, package, [f"a{character}b" for character in EVERY_CHARACTER])
    # Most other code points are unassigned. Everything that people write is taken.
    assert len(EVERY_CHARACTER) - left > 230_000


def test_generated_texts(
    quick: QuickTokenizer, package: tokenizers.Tokenizer, vocabulary: str, request: pytest.FixtureRequest
) -> None:
    count = 1_000_000 if request.config.getoption("--faults") else 200_000
    source = random.Random(20261123)
    words = vocabulary.split("\n")[:-1]
    taken = 0
    while taken < count:
        taken += 50_000 - compare(quick, package, list(generate_texts(50_000, source, words)))


def test_the_evaluation_sentences(quick: QuickTokenizer, package: tokenizers.Tokenizer) -> None:
    assert compare(quick, package, evaluation_sentences()) <= 10


@pytest.mark.parametrize("character", "abcxyzABC0159 \t-'.éßñÄçøłŽαΩжЯ的日本がカ한글עאงกक😀👍🏽€—“…")
def test_what_people_write_is_taken(character: str, quick: QuickTokenizer) -> None:
    assert quick.tokenize(f"a {character} b") is not None


@pytest.mark.parametrize("text", ["[CLS]", "a [SEP] b", "x[MASK]", "[PAD][PAD]", "\U0001e900", "\u0378", "\U0010ffff"])
def test_added_tokens_and_unassigned_characters_are_left_to_the_package(text: str, quick: QuickTokenizer) -> None:
    assert quick.tokenize(text) is None


@pytest.mark.parametrize("length", [1, 99, 100, 101, 300, 100_000])
def test_a_word_of_any_length(length: int, quick: QuickTokenizer, package: tokenizers.Tokenizer) -> None:
    texts = ["a" * length, "é" * length, "的" * length, "e\u0301" * length, "." * length, "password" * length]
    assert compare(quick, package, texts) == 0


@pytest.mark.parametrize("max_seq_length", [2, 3, 5, 16])
def test_truncation(max_seq_length: int, rules: WordPiece, vocabulary: str, bundle: Path) -> None:
    package = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    package.enable_truncation(max_seq_length)
    texts = ["", "one", "one two", "tokenizers tokenize tokenizable tokens", "a b c d e f g h i j k l m n o p q r s t"]
    assert compare(QuickTokenizer(rules, vocabulary, max_seq_length), package, texts) == 0


def cut_by_tokenizer(text: str, rules: WordPiece, max_seq_length: int) -> str:
    """Return what of a text comes to the quick tokenizer."""
    given: list[str] = []

    class Noting:
        def tokenize(self, text: str) -> list[int]:
            given.append(text)
            return []

    def never() -> Any:
        raise AssertionError

    assert Tokenizer(never, max_seq_length, rules, Noting()).tokenize([text]) == [[]]
    return given[0]


@pytest.mark.parametrize("max_seq_length", [3, 64, 256])
def test_of_a_long_text_the_beginning_has_the_same_tokens(
    max_seq_length: int, rules: WordPiece, vocabulary: str, bundle: Path
) -> None:
    package = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    package.enable_truncation(max_seq_length)
    quick = QuickTokenizer(rules, vocabulary, max_seq_length)
    source = random.Random(3)
    words = [
        *("a", "password", "größer", "e\u0301", "\u0301", "\0", "的", "…"),
        *("[SEP]", "[SE", "##x", "\u0378", "\t", "", "\u200b"),
    ]
    cut = 0
    for length in (2_000, 5_000, 30_000):
        for usual in (1, 20, 200):
            parts = source.choices(words, weights=[usual, usual, *[1] * (len(words) - 2)], k=length)
            text = source.choice((" ", " ", "  ", "")).join(parts)
            beginning = cut_by_tokenizer(text, rules, max_seq_length)
            cut += beginning != text
            assert text.startswith(beginning)
            assert package.encode(beginning).ids == package.encode(text).ids
            assert quick.tokenize(beginning) in (None, package.encode(text).ids)
    assert cut > 2


def test_a_beginning_ends_where_tokens_cannot_be_told(rules: WordPiece) -> None:
    assert len(cut_by_tokenizer("word " * 100_000, rules, 16)) == 5 * 4 * 14
    for text in (
        "\0 " * 100_000,
        "\u0301 " * 100_000,
        "a" * 100_000,
        "a\u3000" * 50_000,
        " " * 100_000,
        "word " * 2_000,
    ):
        assert cut_by_tokenizer(text, rules, 16) == text
    with_space = rules.replace(added_tokens=("New York",))
    assert cut_by_tokenizer("New York " * 10_000, with_space, 16) == "New York " * 10_000


@pytest.mark.parametrize("is_native", [True, False], ids=["C", "Python"])
def test_ascii_needs_no_table_of_unicode(is_native: bool, bundle: Path, fresh: Fresh) -> None:
    code = """
import sys
if sys.argv[1] == "False":
    from firstvec.machine import native
    native.module = lambda: None
from firstvec import get_embedding_provider
get_embedding_provider(strategy="quantized", output="buffer").embed_query("how do I reset my password?")
print(sorted({"unicodedata", "tokenizers", "re", "dataclasses", "typing", "logging", "pathlib"} & set(sys.modules)))
"""
    assert fresh(code, is_native).stdout == "[]\n"
