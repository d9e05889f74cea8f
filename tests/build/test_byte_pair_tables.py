"""The tables of byte-level BPE in C: the ids of the tokenizers package, and what is left to the package."""

from __future__ import annotations

import json
import random
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from firstvec import _native
from firstvec_build.byte_pair_tables import _CL100K_EXPRESSION, _GPT2_EXPRESSION, make_tables
from firstvec_build.quality import evaluation_sentences
from firstvec_build.quick_tokenizer import find_outer_ids, generate_texts, list_characters
from tests.build.test_unigram_tables import LANGUAGES

QWEN2 = _CL100K_EXPRESSION.replace("DIGITS", r"\p{N}")
LLAMA3 = _CL100K_EXPRESSION.replace("DIGITS", r"\p{N}{1,3}")
NFC = {"type": "NFC"}


def by(expression: str, **changes: Any) -> dict[str, Any]:
    """Return the pre-tokenizer that splits by an expression."""
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split | changes, as_bytes]}


def byte_level(**changes: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | changes


FORMS: dict[str, dict[str, Any]] = {
    "RoBERTa": {},
    "RoBERTa with a space": {"pre_tokenizer": byte_level(add_prefix_space=True)},
    "ModernBERT": {"normalizer": NFC},
    "GPT-2 by Split": {"pre_tokenizer": by(_GPT2_EXPRESSION)},
    "Qwen2": {"normalizer": NFC, "pre_tokenizer": by(QWEN2), "post_processor": byte_level()},
    "Llama 3": {"pre_tokenizer": by(LLAMA3), "post_processor": None},
}


@pytest.fixture(scope="module")
def roberta() -> Tokenizer:
    from tests.tiny import make_byte_pairs

    tokenizer = make_byte_pairs()
    tokenizer.enable_truncation(64)
    return tokenizer


@pytest.fixture(scope="module", params=FORMS)
def package(request: pytest.FixtureRequest, roberta: Tokenizer) -> Tokenizer:
    changes = FORMS[request.param]
    tokenizer = changed(roberta, **changes)
    if request.param == "ModernBERT":
        tokenizer.add_tokens([AddedToken(" " * size, normalized=True) for size in (2, 3, 4)])
    return tokenizer


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    """Return the tokenizer with other parts of its JSON. ``model__dropout`` names a key of ``model``."""
    document = json.loads(tokenizer.to_str())
    for path, value in parts.items():
        *parents, key = path.split("__")
        target = document
        for parent in parents:
            target = target[parent]
        target[key] = value
    return Tokenizer.from_str(json.dumps(document))


def open_tables(package: Tokenizer, length: int = 64) -> Any:
    outer = find_outer_ids(json.loads(package.to_str())["post_processor"])
    assert outer is not None
    tables = make_tables(package, *outer)
    assert tables is not None
    with tempfile.TemporaryFile() as stream:
        stream.write(tables)
        stream.flush()
        return _native.BytePairs(stream.fileno(), len(tables), length)


def compare(package: Tokenizer, texts: Iterable[str], quick: Any) -> float:
    """Compare the ids of all texts that the engine takes. Return their share."""
    count, taken, iterator = 0, 0, iter(texts)
    while some := [*islice(iterator, 10_000)]:
        rows = {text: ids for text in some if (ids := quick.tokenize(text)) is not None}
        for text, encoding in zip(rows, package.encode_batch_fast([*rows]), strict=True):
            assert rows[text] == encoding.ids, ascii(text)
        count += len(some)
        taken += sum(text in rows for text in some)
    return taken / count


def words_of(package: Tokenizer) -> list[str]:
    return sorted(token.replace("\u0120", " ") for token in package.get_vocab(with_added_tokens=False))


def characters(step: int) -> Iterator[str]:
    """Yield every ``step``-th code point between letters, digits, marks and white space."""
    for code in (*range(0, 0xD800, step), *range(0xE000, 0x110000, step)):
        yield f"a{chr(code)}b 1{chr(code)}2 \t{chr(code)}\n'{chr(code)} "
        yield f"{chr(code)}\u0301"


def test_every_code_point_has_the_ids_of_the_package(package: Tokenizer, request: pytest.FixtureRequest) -> None:
    quick = open_tables(package)
    every = request.config.getoption("--faults") or request.node.callspec.params["package"] in ("RoBERTa", "Qwen2")
    assert compare(package, characters(1 if every else 16), quick) > 0.08
    assert compare(package, list_characters(), quick) > 0.8


def test_generated_texts_have_the_ids_of_the_package(package: Tokenizer, request: pytest.FixtureRequest) -> None:
    count = 300_000 if request.config.getoption("--faults") else 5_000  # in each of six forms
    quick = open_tables(package)
    assert compare(package, generate_texts(count, random.Random(5), words_of(package)), quick) > 0.15
    assert compare(package, spaced_texts(count), quick) > 0.5


def spaced_texts(count: int) -> Iterator[str]:
    """Yield texts of the signs that the expressions treat differently."""
    signs = [
        "'",
        "'s",
        "'RE",
        "'Ll",
        "'\u017f",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u3000",
        "\xa0",
        "a",
        "B",
        "é",
        "日本",
        "1",
        "23",
    ]
    signs += ["4567", "\u0663", "½", "!", "?!", "…", "😀", "\u0e31", "\u094d", "\u0301"]
    chooser = random.Random(11)
    for _ in range(count):
        yield "".join(chooser.choices(signs, k=chooser.randint(0, 9)))


def test_texts_of_many_languages_are_taken_and_have_the_ids_of_the_package(package: Tokenizer) -> None:
    quick = open_tables(package)
    assert compare(package, [unicodedata.normalize("NFC", text) for text in LANGUAGES], quick) >= 0.9
    assert compare(package, evaluation_sentences(), quick) > 0.9


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": byte_level(use_regex=False)},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": by(_GPT2_EXPRESSION, behavior="Removed")},
        {"pre_tokenizer": by(_GPT2_EXPRESSION, invert=True)},
        {"pre_tokenizer": by(_GPT2_EXPRESSION + "|x")},
        {"pre_tokenizer": by(_GPT2_EXPRESSION, pattern={"String": " "})},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()],
            }
        },
        {"model__dropout": 0.1},
        {"model__continuing_subword_prefix": "##"},
        {"model__end_of_word_suffix": "</w>"},
        {"model__byte_fallback": True},
    ],
    ids=str,
)
def test_a_part_that_the_engine_does_not_know_gives_no_tables(parts: dict[str, Any], roberta: Tokenizer) -> None:
    document = json.loads(roberta.to_str())
    if "model__continuing_subword_prefix" in parts:
        document["model"]["merges"] = []
    assert make_tables(changed(Tokenizer.from_str(json.dumps(document)), **parts), (0,), (2,)) is None


def test_a_vocabulary_without_a_byte_gives_no_tables(roberta: Tokenizer) -> None:
    document = json.loads(roberta.to_str())
    document["model"] |= {"merges": [], "vocab": {"a": 0}}
    assert make_tables(Tokenizer.from_str(json.dumps(document)), (), ()) is None


def test_whole_tokens_before_the_merges(roberta: Tokenizer) -> None:
    same = changed(roberta, model__ignore_merges=True)
    compare(same, [*LANGUAGES, *words_of(same)], open_tables(same))
    document = json.loads(same.to_str())
    document["model"]["vocab"]["zqzq"] = len(document["model"]["vocab"]) + 100
    other = Tokenizer.from_str(json.dumps(document))
    assert make_tables(other, (0,), (2,)) is None
    assert make_tables(changed(other, model__ignore_merges=False), (0,), (2,)) is not None


def test_limits_of_the_file(roberta: Tokenizer) -> None:
    assert make_tables(roberta, (1,) * 4, (1,) * 4) is not None
    assert make_tables(roberta, (1,) * 5, ()) is None
    assert make_tables(roberta, (), (1,) * 5) is None
    long = changed(roberta)
    long.add_tokens(["x" * 256])
    assert make_tables(long, (), ()) is None


def test_long_pieces_added_tokens_and_truncation(package: Tokenizer) -> None:
    quick = open_tables(package)
    pieces = ("", " ", "a" * 2040, "z" * 2000, " " * 1500, "1" * 1500, "a b " * 5000, "!" * 700, "日" * 600)
    for text in pieces:
        ids = quick.tokenize(text)
        assert ids == package.encode(text).ids or (ids is None and text == " " * 1500)
    assert quick.tokenize("z" * 2100) is None
    assert quick.tokenize("text <mask>") is quick.tokenize("<s>") is None
    assert quick.tokenize("a <b> < c>") == package.encode("a <b> < c>").ids
    assert quick.tokenize("\ua7cb") is None  # a letter of Unicode 16
    assert quick.tokenize("\U0001fae0") is not None
    with pytest.raises(UnicodeEncodeError):
        quick.tokenize("\ud800")


def test_text_that_nfc_changes_is_left(roberta: Tokenizer) -> None:
    quick = open_tables(changed(roberta, normalizer=NFC))
    for text in ("e\u0301", "\u212b", "\u1100\u1161", "\u0e01\u0e38\u0e4d", "\u0958"):
        assert (quick.tokenize(text) is None) == (
            unicodedata.normalize("NFC", text) != text
        ) or text == "\u0e01\u0e38\u0e4d"
    assert quick.tokenize("\u0e01\u0e38") is not None


def test_the_same_tokenizer_gives_the_same_bytes(package: Tokenizer) -> None:
    text = package.to_str()
    assert make_tables(Tokenizer.from_str(text), (0,), (2,)) == make_tables(Tokenizer.from_str(text), (0,), (2,))
