"""The tables of Unigram in C: the ids of the tokenizers package, and what is left to the package."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from tokenizers import Tokenizer

from firstvec import _native
from firstvec_build.quality import evaluation_sentences
from firstvec_build.quick_tokenizer import find_outer_ids, generate_texts, list_characters
from firstvec_build.unigram_tables import make_tables

LANGUAGES = [
    "How do I reset my password? It's 10:30 – we've got ½ an hour, “quoted” text, e-mail@example.org.",
    "Größere Straßen führen über die Brücke; naïve Köche essen Äpfel für 3,50 €.",
    "Как сбросить пароль? Ёлка, съёмка и 25 апреля 2024 года — всё здесь.",
    "パスワードをリセットするには？東京都の人口は約1,400万人です。ﾊﾝｶｸ カナ",
    "我该如何重置密码？北京是中华人民共和国的首都，面积１６４１０平方千米。",
    "मैं अपना पासवर्ड कैसे रीसेट करूँ? हिन्दी भारत की भाषा है।",
    "كيف أعيد تعيين كلمة المرور؟ اللغة العربية جميلة",
    "비밀번호를 어떻게 재설정합니까? 서울특별시",
    "ฉันจะรีเซ็ตรหัสผ่านได้อย่างไร",
    "Πώς μπορώ να επαναφέρω τον κωδικό;",
]


@pytest.fixture(scope="module")
def package() -> Tokenizer:
    from tests.tiny import make_pieces, make_unigram

    return truncated(make_unigram(make_pieces(4000)), 64)


def truncated(tokenizer: Tokenizer, length: int) -> Tokenizer:
    tokenizer.enable_truncation(length)
    return tokenizer


def open_tables(package: Tokenizer, length: int | None = None) -> Any:
    """Return the engine's tokenizer for a package's tokenizer. None: there are no tables for it."""
    document = json.loads(package.to_str())
    outer = find_outer_ids(document["post_processor"])
    assert outer is not None
    if (tables := make_tables(package, *outer)) is None:
        return None
    with tempfile.TemporaryFile() as stream:
        stream.write(tables)
        stream.flush()
        return _native.Unigram(stream.fileno(), len(tables), length or document["truncation"]["max_length"])


def compare(package: Tokenizer, texts: Iterable[str], quick: Any = None) -> float:
    """Compare the ids of all texts that the engine takes. Return their share."""
    quick, count, taken = quick or open_tables(package), 0, 0
    length = json.loads(package.to_str())["truncation"]["max_length"]
    for some in batched(texts, 10_000):
        rows = {text: ids for text in some if (ids := quick.tokenize(text)) is not None}
        for text, encoding in zip(rows, package.encode_batch_fast([*rows]), strict=True):
            assert rows[text] == encoding.ids, ascii(text)
            assert len(rows[text]) <= length
        count += len(some)
        taken += sum(text in rows for text in some)
    return taken / count


def batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while some := [*islice(iterator, size)]:
        yield some


def words_of(package: Tokenizer) -> list[str]:
    return sorted(piece.replace("\u2581", " ") for piece in package.get_vocab(with_added_tokens=False))


def changed(package: Tokenizer, **parts: Any) -> Tokenizer:
    """Return the tokenizer with other parts of its JSON. ``model__unk_id`` names a key of ``model``."""
    document = json.loads(package.to_str())
    for path, value in parts.items():
        *parents, key = path.split("__")
        target = document
        for parent in parents:
            target = target[parent]
        target[key] = value
    return Tokenizer.from_str(json.dumps(document))


def small(pieces: dict[str, float], **parts: Any) -> Tokenizer:
    """Return a tokenizer of few pieces, with no normalizer and no special tokens. Piece 0 is unknown."""
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], *pieces.items()], "byte_fallback": False}
    whole: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "model": model}
    whole |= {"normalizer": None, "post_processor": None, "decoder": None, "pre_tokenizer": META}
    return truncated(Tokenizer.from_str(json.dumps(whole | parts)), 64)


META = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
WORDS = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, META]}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [each if isinstance(each, dict) else {"type": each} for each in steps]}


def strip(*, left: bool, right: bool) -> dict[str, Any]:
    return {"type": "Strip", "strip_left": left, "strip_right": right}


def test_every_code_point_has_the_ids_of_the_package(package: Tokenizer) -> None:
    codes = [*range(0xD800), *range(0xE000, 0x110000)]
    texts = [f"ab{chr(code)}ing {chr(code)}" for code in codes] + [f"日{chr(code)}本" for code in codes]
    quick = open_tables(package)
    assert compare(package, texts, quick) > 0.19  # Unicode 3.2 has assigned one code point in five
    # U+00AD is a format character, which may join the letter before
    assert all(quick.tokenize(f"a{chr(code)}") is not None for code in (*range(0xAD), *range(0xAE, 0x221)))


def test_generated_texts_have_the_ids_of_the_package(package: Tokenizer, request: pytest.FixtureRequest) -> None:
    count = 1_000_000 if request.config.getoption("--faults") else 20_000
    for length in (64, 8):
        texts = generate_texts(count, random.Random(length), words_of(package))
        assert compare(truncated(changed(package), length), texts) > 0.4


def test_texts_of_many_languages_are_taken_and_have_the_ids_of_the_package(package: Tokenizer) -> None:
    quick = open_tables(package)
    assert compare(package, LANGUAGES, quick) == 1
    assert compare(package, evaluation_sentences(), quick) > 0.95
    assert compare(package, list_characters(), quick) > 0.9


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "NFKC"},
        sequence("NFC"),
        sequence(strip(left=False, right=True), SPACES),
        sequence(strip(left=True, right=False)),
        sequence(strip(left=True, right=True), {**SPACES, "content": "\u2581"}),
        sequence("NFKD", "StripAccents", "Lowercase"),
        sequence("Nmt", "NFKC", SPACES),
        sequence({"type": "Replace", "pattern": {"String": "``"}, "content": '"'}, "NFKD", "StripAccents", SPACES),
        "compiled",
        "compiled and stripped",
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "pre_tokenizer", [META, META | {"prepend_scheme": "first"}, META | {"prepend_scheme": "never"}, WORDS]
)
def test_other_normalizers_have_the_ids_of_the_package(normalizer: Any, pre_tokenizer: Any, package: Tokenizer) -> None:
    if isinstance(normalizer, str):
        compiled = json.loads(package.to_str())["normalizer"]
        normalizer = compiled if normalizer == "compiled" else sequence(compiled, strip(left=False, right=True), SPACES)
    other = changed(package, normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    document = json.loads(other.to_str())
    if (quick := open_tables(other)) is None:
        # A word's first character would depend on what was stripped, or on white space that is none.
        is_first = pre_tokenizer.get("prepend_scheme") == "first"
        steps = json.dumps(document["normalizer"])
        assert (is_first and '"strip_left": true' in steps) or (
            pre_tokenizer == WORDS and '"content": "\\u2581"' in steps
        )
        return
    texts = generate_texts(700, random.Random(1), words_of(package))
    awkward = [
        "",
        " ",
        "  ",
        " a",
        "a ",
        "  a  b  ",
        "\u200b",
        "\u200ba",
        "\x01",
        "a\r\nb",
        "\r\n",
        "`` a",
        "\u3000a\u3000",
    ]
    assert compare(other, [*awkward, *texts, *LANGUAGES], quick) > 0.15
    assert compare(other, list_characters(), quick) > 0.5


@pytest.mark.parametrize(
    "parts",
    [
        {"model__unk_id": None},
        {"model__byte_fallback": True},
        {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            }
        },
        {"normalizer": {"type": "Prepend", "prepend": "x"}},
        {"normalizer": sequence(strip(left=True, right=True), "NFKC")},
        {"normalizer": sequence(SPACES, "NFKC")},
        {"normalizer": sequence(SPACES, strip(left=True, right=True))},
        {"normalizer": sequence("NFKC", {"type": "Replace", "pattern": {"String": "ab"}, "content": "c"})},
        {"normalizer": sequence({"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": "0"})},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": META | {"split": False}},
        {"pre_tokenizer": META | {"replacement": "_"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, META]}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "WhitespaceSplit"}, META | {"prepend_scheme": "first"}],
            }
        },
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "WhitespaceSplit"}, META | {"prepend_scheme": "never"}],
            }
        },
    ],
    ids=str,
)
def test_a_part_that_the_engine_does_not_know_gives_no_tables(parts: dict[str, Any], package: Tokenizer) -> None:
    assert make_tables(changed(package, **parts), (0,), (2,)) is None


def test_limits_of_the_file() -> None:
    assert make_tables(small({"a": -1.0}), (1,) * 4, (1,) * 4) is not None
    assert make_tables(small({"a": -1.0}), (1,) * 5, ()) is None
    assert make_tables(small({"a": -1.0}), (), (1,) * 5) is None
    assert make_tables(small({"a" * 1024: -1.0}), (), ()) is not None
    assert make_tables(small({"a" * 1025: -1.0}), (), ()) is None
    long = small({"a": -1.0})
    long.add_tokens(["x" * 256])
    assert make_tables(long, (), ()) is None


def test_paths_are_those_of_the_package() -> None:
    # two paths of the same score, an unknown run, a run that is a piece itself, a piece that no character begins
    tokenizer = small(
        {"\u2581": -1.0, "a": -1.0, "b": -1.0, "ab": -2.0, "aba": -3.0, "xy": -40.0, "\u2581c": -5.0, "zz": -3.5}
    )
    quick = open_tables(tokenizer)
    for text in (
        "ab",
        "aba",
        "abab",
        "ababa",
        "xy",
        "xyx",
        "xyxy",
        "c",
        "cc",
        "zz",
        "zzz",
        "azzb",
        "日本",
        "a日本b",
        "<unk>",
    ):
        assert quick.tokenize(text) == tokenizer.encode(text).ids, text
    assert quick.tokenize("日本") == [1, 0]
    letters = random.Random(4)
    for _ in range(1000):
        text = "".join(letters.choices("abcxyz ", k=letters.randint(0, 12)))
        assert quick.tokenize(text) == tokenizer.encode(text).ids, text


def test_scores_are_added_as_double_numbers() -> None:
    chooser = random.Random(7)
    for _ in range(5):
        # multiples of 0.1: many sums are equal on paper, and differ in the last bit
        pieces = {
            "".join(chooser.choices("ab", k=chooser.randint(1, 4))): -chooser.randint(1, 30) / 10 for _ in range(12)
        }
        tokenizer = small({"\u2581": -1.0, **pieces})
        assert compare(tokenizer, ["".join(chooser.choices("ab", k=20)) for _ in range(200)]) == 1


def test_long_words_added_tokens_and_truncation(package: Tokenizer) -> None:
    quick = open_tables(package, 16)
    expected = truncated(changed(package), 16)
    for text in ("", "a" * 509, "a" * 510, "a" * 513, "z" * 70_000, "日" * 5000, "a " * 5000, "é" * 400_000):
        assert quick.tokenize(text) == expected.encode(text).ids
    assert quick.tokenize("z" * 1_100_000) is None  # a word beyond 1 MiB
    assert quick.tokenize("a " * 600_000) == expected.encode("a " * 600_000).ids
    assert quick.tokenize("text <mask>") is quick.tokenize("<s>") is None
    assert quick.tokenize("a <b> < c>") == expected.encode("a <b> < c>").ids
    assert quick.tokenize("a\u2581b") is None
    assert quick.tokenize("e\u0301") is None  # one grapheme cluster of 3 bytes
    assert quick.tokenize("\u0e01\u0e31") is not None  # one of 6 bytes
    assert quick.tokenize("\U0001fae0") is not None
    assert quick.tokenize("\ua7cb") is None  # a letter of Unicode 16
    with pytest.raises(UnicodeEncodeError):
        quick.tokenize("\ud800")
    with pytest.raises(TypeError):
        quick.tokenize(b"bytes")


def test_added_tokens_that_the_package_finds_in_normalized_text(package: Tokenizer) -> None:
    document = json.loads(package.to_str())
    for token in document["added_tokens"]:
        token["normalized"] = True
    other = Tokenizer.from_str(json.dumps(document))
    quick = open_tables(other)
    texts = ["＜s＞", "<ｓ>", "<\x01s>", "<ma\u200bsk>", "<mask>", "a<b", "plain"]
    assert compare(other, [*texts, *generate_texts(2000, random.Random(3), words_of(package))]) > 0.4
    assert quick.tokenize("＜s＞") is None
    assert quick.tokenize("plain") is not None


def test_the_same_tokenizer_gives_the_same_bytes(package: Tokenizer) -> None:
    text = package.to_str()
    assert make_tables(Tokenizer.from_str(text), (0,), (2,)) == make_tables(Tokenizer.from_str(text), (0,), (2,))
