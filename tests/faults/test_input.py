"""Any text has a vector of the right tokens, in bounded time and memory. What is not a text is refused."""

from __future__ import annotations

import random
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import EmbeddingProvider, InputError, Manifest, OptimizedEmbeddingLoader
from firstvec.text.tokenizer import Tokenizer, open_tokenizer
from tests.conftest import HAS_ENGINE, Fresh
from tests.faults.conftest import Campaign

SPECIAL = (
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "[UNK]",
    "[MASK]",
    "[cls]",
    "[CLS",
    "[[MASK]]",
    "##",
    "##ing",
    "[unused1]",
    "</s>",
)
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufe0e\ufe0f\u00ad\ufeff\u034f"
BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c"
EMOJI = ("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "1️⃣", "😀", "🧑🏿‍🚀", "❤️")
SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000"


def unicode_texts(count: int, source: random.Random, words: list[str]) -> Iterator[str]:
    """Yield texts of any Unicode characters, assigned or not, and words of a vocabulary. One in 500 is very long."""

    def any_character() -> str:
        plane = source.choice((0, 0, 0, 1, 1, 2, 3, 14, source.randrange(17)))
        while 0xD800 <= (code := plane * 0x10000 + source.randrange(0x10000)) < 0xE000:
            pass
        return chr(code)

    kinds: tuple[Callable[[], str], ...] = (
        any_character,
        lambda: "".join(any_character() for _ in range(source.randint(2, 8))),
        lambda: source.choice(words).removeprefix("##"),
        lambda: source.choice(words) + any_character() + source.choice(words).upper(),
        lambda: (
            source.choice("aeiounAEIOUN")
            + "".join(chr(source.randint(0x300, 0x36F)) for _ in range(source.randint(1, 9)))
        ),
        lambda: unicodedata.normalize(source.choice(("NFC", "NFD", "NFKC", "NFKD")), any_character()),
        lambda: chr(source.choice((0, 1, 7, 8, 0x1B, 0x7F, 0x80, 0x9F, 0xFFFE, 0xFFFF, 0xFFFD, 0x10FFFF))),
        lambda: source.choice(ZERO_WIDTH + BIDI),
        lambda: source.choice(EMOJI),
        lambda: source.choice(SPACES),
        lambda: chr(source.randint(0x4E00, 0x9FFF)) * source.randint(1, 4),
        lambda: source.choice(SPECIAL),
        lambda: chr(source.randint(0x20, 0x7E)),
    )
    for _ in range(count):
        parts = source.randint(300, 3000) if source.random() < 0.002 else source.randint(0, 12)
        yield source.choice(("", "", " ")).join(source.choice(kinds)() for _ in range(parts))


def compare(tokenizer: Tokenizer, reference: Any, texts: list[str], length: int) -> tuple[int, int]:
    """Assert that sentence-transformers' tokenizer gives the same ids.

    Returns:
        The number of texts, and how many of them the quick tokenizer took.
    """
    quick = 0
    for start in range(0, len(texts), 2000):
        some = texts[start : start + 2000]
        expected = reference(some, truncation=True, max_length=length)["input_ids"]
        for text, ours, theirs in zip(some, tokenizer.tokenize(some), expected, strict=True):
            assert ours == theirs, ascii(text)
            quick += tokenizer._quick is not None and tokenizer._quick.tokenize(text) is not None
    return len(texts), quick


def reference_of(model: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(model), device="cpu")


@pytest.fixture(scope="module")
def words(bundle: Path) -> list[str]:
    return (bundle / "vocab.txt").read_text("utf-8").split("\n")[:-1]


@pytest.fixture
def provider(bundle: Path) -> Iterator[EmbeddingProvider]:
    provider = OptimizedEmbeddingLoader(str(bundle)).get_provider()
    yield provider
    provider.close()


# --- Any text --------------------------------------------------------------------------------------------------------


def test_any_unicode_text_has_the_tokens_of_sentence_transformers(
    bundle: Path, words: list[str], sentence_transformer: Any, campaign: Campaign
) -> None:
    texts = list(unicode_texts(campaign.size(1_000, 100_000), random.Random(5), words))
    manifest = Manifest.read(bundle)
    count, quick = compare(open_tokenizer(manifest), sentence_transformer.tokenizer, texts, 256)
    # The tokenizer in C takes every text. The one in Python leaves some to the package.
    assert quick == count if HAS_ENGINE else 0 < quick < count
    package_only = open_tokenizer(manifest.replace(wordpiece=None))
    compare(package_only, sentence_transformer.tokenizer, texts[:: campaign.size(5, 4)], 256)
    campaign.record("random Unicode, token ids", texts=count, by_the_quick_tokenizer=quick, different=0)


def test_a_tiny_model_has_the_tokens_of_sentence_transformers(
    tiny_built: Path, tiny_model: Path, words: list[str], campaign: Campaign
) -> None:
    texts = list(unicode_texts(campaign.size(300, 20_000), random.Random(6), words))
    tokenizer = reference_of(tiny_model).tokenizer
    compare(open_tokenizer(Manifest.read(tiny_built)), tokenizer, texts, 128)


def test_any_unicode_text_has_a_finite_vector_of_unit_length(
    tiny_built: Path, provider: EmbeddingProvider, words: list[str], campaign: Campaign
) -> None:
    source = random.Random(7)
    texts = list(unicode_texts(campaign.size(60, 4_000), source, words))
    many = list(unicode_texts(campaign.size(500, 100_000), source, words))
    tiny = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    for model, given in ((provider, texts), (tiny, many)):
        vectors = model.encode(given)
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
        for at in source.sample(range(len(given)), campaign.size(20, 500)):
            np.testing.assert_allclose(model.embed_query(given[at]), vectors[at], atol=2e-5, err_msg=ascii(given[at]))
    tiny.close()
    campaign.record("random Unicode, vectors", real_model=len(texts), tiny_model=len(many), not_unit_or_finite=0)


def test_the_vectors_of_odd_texts_are_those_of_sentence_transformers(
    provider: EmbeddingProvider, sentence_transformer: Any, words: list[str], campaign: Campaign
) -> None:
    texts = ["", " ", "\0", *SPECIAL, *EMOJI, "\U0010ffff", BIDI, ZERO_WIDTH, "e" + "\u0301" * 500]
    texts += unicode_texts(campaign.size(20, 1_000), random.Random(8), words)
    np.testing.assert_allclose(provider.encode(texts), sentence_transformer.encode(texts), atol=2e-5)


def test_the_empty_string_has_only_the_special_tokens(provider: EmbeddingProvider, sentence_transformer: Any) -> None:
    assert provider._tokenizer.tokenize([""]) == [[101, 102]]
    assert provider.count_tokens("") == [2]
    for nothing in ("", " \n", "\0", "\u200b"):
        np.testing.assert_allclose(provider.embed_query(nothing), sentence_transformer.encode(""), atol=1e-5)


# --- Very long texts -------------------------------------------------------------------------------------------------

LONG = {
    "1 MB of one word": "'a' * 10**6",
    "1 MB of ideographs": "chr(0x4e00) * 333_000",
    "1 MB of combining marks": "'e' + chr(0x301) * 500_000",
    "1 MB of punctuation": "'.' * 10**6",
    "1 MB of spaces": "' ' * 10**6",
    "1 MB of NULs": "chr(0) * 10**6",
    "1 MB of emoji": "chr(0x1f600) * 250_000",
    "1 MB of unassigned characters": "chr(0x378) * 500_000",
    "1 MB of added tokens": "'[MASK]' * 166_000",
    "10 MB of words": "'how do I reset my password? ' * 380_000",
    "10 MB of words and a special token": "'how do I reset my password? ' * 380_000 + '[SEP]'",
}
MEASURED = """
import sys, time
from firstvec import get_embedding_provider
provider = get_embedding_provider(sys.argv[1], output="list")
provider.embed_query("[MASK] größer 日本")
def peak():  # ru_maxrss would not do, because a process inherits it from its parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
text = eval(sys.argv[2])
before, began = peak(), time.perf_counter()
vector = provider.embed_query(text)
seconds = time.perf_counter() - began
grown = (peak() - before) * 1024
assert abs(sum(value * value for value in vector) - 1) < 1e-3
print(seconds, grown / len(text.encode()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("name", LONG)
def test_a_very_long_text_takes_bounded_time_and_memory(
    name: str, bundle: Path, fresh: Fresh, campaign: Campaign
) -> None:
    seconds, times = map(float, fresh(MEASURED, bundle, LONG[name]).stdout.split())
    campaign.record("very long texts", **{name: f"{seconds:.2f} s, {times:.0f} bytes of memory a byte of text"})
    # The longest of these texts takes 0.3 s on an idle machine. A text whose time grows with the square of its length
    # would take many minutes, so this limit finds such a text on a slow machine, too.
    assert seconds < 30
    assert times < 50


@pytest.mark.parametrize("name", ["1 MB of one word", "1 MB of ideographs", "1 MB of combining marks", "1 MB of emoji"])
def test_a_very_long_text_has_the_tokens_of_sentence_transformers(
    name: str, bundle: Path, sentence_transformer: Any
) -> None:
    compare(open_tokenizer(Manifest.read(bundle)), sentence_transformer.tokenizer, [eval(LONG[name])], 256)


# --- What is not a text ----------------------------------------------------------------------------------------------

BAD = [
    None,
    b"bytes",
    bytearray(b"bytes"),
    3,
    1.5,
    True,
    ["nested"],
    ("a",),
    object(),
    "lone \ud800",
    "\udfff",
    "a\udc80b",
]
ENTRIES: dict[str, Callable[[Any, list[Any]], object]] = {
    "encode": lambda each, texts: each.encode(texts),
    "embed_batch": lambda each, texts: each.embed_batch(texts),
    "encode_iter": lambda each, texts: list(each.encode_iter(texts)),
    "encode_iter of a generator": lambda each, texts: list(each.encode_iter(text for text in texts)),
    "count_tokens": lambda each, texts: each.count_tokens(texts),
}


@pytest.fixture
def tiny(tiny_built: Path) -> OptimizedEmbeddingLoader:
    return OptimizedEmbeddingLoader(str(tiny_built))


@pytest.mark.parametrize("bad", BAD, ids=ascii)
@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_wrong_text_is_refused_with_its_index(
    entry: str, index: int, bad: Any, tiny: OptimizedEmbeddingLoader
) -> None:
    texts: list[Any] = ["one", "two", "three"]
    texts[index] = bad
    with pytest.raises(InputError, match=f"^text {index}: ") as caught:
        ENTRIES[entry](tiny.get_provider(), texts)
    assert caught.value.index == index
    assert str(caught.value).isprintable()
    if entry == "count_tokens":
        with pytest.raises(InputError, match=f"^text {index}: "):
            tiny.count_tokens(texts)


@pytest.mark.parametrize("bad", BAD, ids=ascii)
@pytest.mark.parametrize("method", ["embed_query", "embed_chunk"])
def test_a_single_wrong_text_is_refused(method: str, bad: Any, tiny: OptimizedEmbeddingLoader) -> None:
    with pytest.raises(InputError, match=r"^text 0: ") as caught:
        getattr(tiny.get_provider(), method)(bad)
    assert caught.value.index == 0


@pytest.mark.parametrize("bad", [None, 3, 1.5, object(), {"a"}, {"a": 1}, frozenset("a")], ids=ascii)
@pytest.mark.parametrize("method", ["encode", "embed_batch", "encode_iter", "count_tokens"])
def test_an_argument_that_is_no_sequence_of_texts_is_refused(
    method: str, bad: Any, tiny: OptimizedEmbeddingLoader
) -> None:
    provider = tiny.get_provider()
    if method == "encode_iter" and isinstance(bad, set | dict | frozenset):
        # encode_iter takes any iterable: one vector a text, in the order in which the iterable gives the texts.
        np.testing.assert_allclose([*provider.encode_iter(bad)], provider.encode(["a"]), atol=1e-6)
        return
    with pytest.raises(InputError):
        list(getattr(provider, method)(bad))


def test_bytes_in_place_of_a_list_are_refused(tiny: OptimizedEmbeddingLoader) -> None:
    for method in ("encode", "embed_batch", "count_tokens"):
        with pytest.raises(InputError, match="decode"):
            getattr(tiny.get_provider(), method)(b"text")
    with pytest.raises(InputError):
        tiny.get_provider().encode_iter(b"text")  # type: ignore[arg-type]


@pytest.mark.parametrize("empty", [[], (), np.array([], dtype=str)], ids=["list", "tuple", "array"])
def test_an_empty_list_has_no_vectors(empty: Any, tiny: OptimizedEmbeddingLoader) -> None:
    provider = tiny.get_provider()
    for method in ("encode", "embed_batch", "encode_query", "encode_document"):
        assert getattr(provider, method)(empty).shape == (0, provider.embedding_dim)
    assert list(provider.encode_iter(empty)) == []
    assert provider.count_tokens(empty) == []


def test_a_subclass_of_str_is_a_text(tiny: OptimizedEmbeddingLoader) -> None:
    class Named(str):
        __slots__ = ()

    provider = tiny.get_provider()
    expected = provider.encode(["text"])
    np.testing.assert_array_equal(provider.encode([Named("text")]), expected)
    np.testing.assert_array_equal(provider.encode(np.array(["text"])), expected)


@pytest.mark.parametrize(
    "data", [b"one\ntwo \xff\n", b"\xed\xa0\x80\n", "größer".encode("utf-16"), b"caf\xe9"], ids=ascii
)
def test_input_that_is_not_utf_8_is_refused_with_the_place(data: bytes, tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, stdin=data)
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"stdin is not UTF-8 (byte " in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_argument_that_is_not_utf_8_is_refused(tiny_built: Path, firstvec: Fresh) -> None:
    if sys.platform != "linux":
        pytest.skip("arguments are bytes on Linux")
    done = firstvec("encode", "-m", tiny_built, "caf\udce9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "lone surrogate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_provider_goes_on_after_a_refusal(tiny: OptimizedEmbeddingLoader) -> None:
    provider = tiny.get_provider()
    expected = provider.encode(["text"])
    for _ in range(50):
        with pytest.raises(InputError):
            provider.encode(["one", None])
    np.testing.assert_array_equal(provider.encode(["text"]), expected)
