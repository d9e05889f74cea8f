"""Measure how close each artifact's vectors of odd texts are to those of full precision.

The scales of an INT8 artifact follow from usual sentences. Odd texts, such as a thousand dots or the names of special
tokens, have other activations. So their cosines say what the artifact does with input that nobody expected.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import string
import sys
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from record import machine, markdown_list, markdown_table, write
from subjects import open_artifacts

from firstvec.bundle.manifest import Manifest
from firstvec.errors import FirstvecError
from firstvec_build.quality import cosine, evaluation_sentences

SEED = 20170801
EACH = 90
"""Most texts of a kind."""
LENGTHS = (2, 10, 100, 1000)
SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "<s>", "</s>", "<pad>", "<mask>", "<|endoftext|>")
SCRIPTS = {
    **{"Latin, extended": (0x00C0, 0x024F), "Greek": (0x0391, 0x03C9), "Cyrillic": (0x0410, 0x044F)},
    **{"Armenian": (0x0561, 0x0586), "Hebrew": (0x05D0, 0x05EA), "Arabic": (0x0627, 0x064A)},
    **{"Devanagari": (0x0904, 0x0939), "Bengali": (0x0985, 0x09A8), "Tamil": (0x0B85, 0x0BB9)},
    **{"Thai": (0x0E01, 0x0E2E), "Georgian": (0x10D0, 0x10F0), "Hangul": (0xAC00, 0xD7A3)},
    **{"Ethiopic": (0x1200, 0x1248), "Hiragana": (0x3041, 0x3096), "Katakana": (0x30A1, 0x30FA)},
    **{"Han": (0x4E00, 0x9FA5), "Cherokee": (0x13A0, 0x13F4), "Gothic": (0x10330, 0x1034A)},
}
"""Script → first and last of a run of its letters."""


def odd_texts() -> dict[str, list[str]]:
    """Return kind → texts. The same call gives the same texts everywhere."""
    return {kind: list(islice(make(random.Random(f"{SEED} {kind}")), EACH)) for kind, make in _KINDS.items()}


def _repeated(characters: str) -> Callable[[random.Random], Iterator[str]]:
    return lambda _random: (letter * length for length, letter in product(LENGTHS, characters))


def _repeated_words(_random: random.Random) -> Iterator[str]:
    words = (
        "the",
        "no",
        "data",
        "ha",
        "ok",
        "null",
        "test",
        "buffalo",
        "0",
        "a b",
        "Ünïcödé",
        "the cat",
        "x, ",
        "lorem ipsum",
    )
    return (" ".join([word] * length) for length, word in product((3, 30, 300), words))


def _special_tokens(_random: random.Random) -> Iterator[str]:
    for token in SPECIAL_TOKENS:
        yield from (
            token,
            token * 2,
            token * 50,
            f"{token} a man eats {token} food",
            f"before{token}after",
            token.lower(),
        )


def _pairs_of_special_tokens(_random: random.Random) -> Iterator[str]:
    return (one + other for one, other in product(SPECIAL_TOKENS, repeat=2) if one != other)


def _between(low: int, high: int, length: int) -> Callable[[random.Random], Iterator[str]]:
    def make(chance: random.Random) -> Iterator[str]:
        while True:
            yield "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, length)))

    return make


def _inserted(inserts: str) -> Callable[[random.Random], Iterator[str]]:
    """Put characters at random places of usual sentences."""

    def make(chance: random.Random) -> Iterator[str]:
        for sentence in _sentences():
            letters = [letter + chance.choice(inserts) if chance.random() < 0.3 else letter for letter in sentence]
            yield "".join(letters) or inserts

    return make


def _sentences() -> list[str]:
    return [sentence[:200] for sentence in evaluation_sentences() if len(sentence) > 20]


def _changed(change: Callable[[str], str]) -> Callable[[random.Random], Iterator[str]]:
    return lambda _random: map(change, _sentences())


def _long_words(chance: random.Random) -> Iterator[str]:
    for length in (30, 99, 100, 101, 200, 1000, 5000):
        for _ in range(13):
            yield "".join(chance.choices(string.ascii_lowercase, k=length))


def _addresses(chance: random.Random) -> Iterator[str]:
    while True:
        name = "".join(chance.choices(string.ascii_lowercase, k=8))
        number = chance.randrange(10**6)
        yield f"https://www.{name}.example/{name}/{number}?q={name}&page={number % 97}#part-{number % 7}"
        yield f"/usr/local/share/{name}/{number:08d}/{name}.tar.gz"
        yield f"C:\\Users\\{name}\\Documents\\{number}.docx"


def _digests(chance: random.Random) -> Iterator[str]:
    while True:
        data = chance.randbytes(32)
        yield from (data.hex(), base64.b64encode(data).decode(), hashlib.md5(data).hexdigest().upper())


def _numbers(chance: random.Random) -> Iterator[str]:
    while True:
        number = chance.randrange(10**12)
        yield from (str(number), f"{number:,}", f"{number / 1e7:.7f}", f"-{number:e}", f"{number:b}")
        yield " ".join(str(chance.randrange(100)) for _ in range(200))


def _markup(chance: random.Random) -> Iterator[str]:
    while True:
        values = {chance.choice(string.ascii_letters) * 3: chance.randrange(1000) for _ in range(chance.randint(1, 30))}
        yield json.dumps(values)
        yield "".join(f"<{name} id='{value}'><br/></{name}>" for name, value in values.items())
        yield "\n".join(f"| {name} | {value} |" for name, value in values.items())
        yield "\n".join(f"if ({name} != {value}) {{ return {name}[{value}]; }}" for name, value in values.items())


def _words_of_scripts(chance: random.Random) -> Iterator[str]:
    while True:
        for low, high in SCRIPTS.values():
            words = ("".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 8))) for _ in range(12))
            yield " ".join(words)


def _mixed_scripts(chance: random.Random) -> Iterator[str]:
    while True:
        yield "".join(chr(chance.randint(*chance.choice([*SCRIPTS.values()]))) for _ in range(chance.randint(2, 200)))


def _emoji(chance: random.Random) -> Iterator[str]:
    while True:
        people = [chr(chance.randint(0x1F466, 0x1F469)) for _ in range(3)]
        yield from (chr(chance.randint(0x1F600, 0x1F64F)) * chance.randint(1, 100), "\u200d".join(people))
        yield "".join(chr(0x1F1E6 + chance.randrange(26)) for _ in range(20))


def _swapped_letters(chance: random.Random) -> Iterator[str]:
    for sentence in _sentences():
        letters = list(sentence)
        for _ in range(len(letters) // 4):
            place = chance.randrange(len(letters) - 1)
            letters[place : place + 2] = letters[place + 1], letters[place]
        yield "".join(letters)


_KINDS: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "repeated ASCII character": _repeated(".-!?#=_ax0 *~,"),
    "repeated other character": _repeated("漢あé€—…😀ñßж"),
    "repeated words": _repeated_words,
    "special tokens": _special_tokens,
    "two special tokens": _pairs_of_special_tokens,
    "one ASCII character": lambda _random: map(chr, range(128)),
    "control characters": _between(0, 31, 50),
    "control characters in text": _inserted("".join(map(chr, range(1, 32)))),
    "invisible characters in text": _inserted("\u200b\u200c\u200d\u00ad\ufeff\u202e\u2066"),
    "white space": _inserted(" \t\n\r\u00a0\u2003\u3000\u2028"),
    "combining marks": _inserted("".join(map(chr, range(0x300, 0x340)))),
    "emoji": _emoji,
    "long words": _long_words,
    "addresses": _addresses,
    "digests": _digests,
    "numbers": _numbers,
    "markup and code": _markup,
    "upper case": _changed(str.upper),
    "without spaces": _changed(lambda text: text.replace(" ", "")),
    "backwards": _changed(lambda text: text[::-1]),
    "swapped letters": _swapped_letters,
    "full-width letters": _changed(lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)),
    "scripts": _words_of_scripts,
    "mixed scripts": _mixed_scripts,
    "private use": _between(0xE000, 0xF8FF, 40),
}


def main() -> None:
    """Measure the artifacts of a bundle, and print a table of all texts and one of the kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--artifact", action="append", metavar="ID", help="measure this one, and full precision")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, and the machine")
    options = parser.parse_args()
    try:
        measure(options)
    except FirstvecError as error:
        sys.exit(f"error: {error}")


def measure(options: argparse.Namespace) -> None:
    """Compare and report.

    Raises:
        FirstvecError: the bundle cannot be used.
    """
    manifest = Manifest.read(options.bundle.resolve())
    kinds = odd_texts()
    texts = [text for each in kinds.values() for text in each]
    reference: Any = None
    figures: dict[str, dict[str, Any]] = {}
    of_kinds: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for name, encode in open_artifacts(manifest, options.artifact):
        vectors = np.asarray(encode(texts, 32), np.float32)
        reference = vectors if reference is None else reference
        cosines = cosine(vectors, reference)
        start = 0
        for kind, each in kinds.items():
            of_kinds[kind][name] = float(cosines[start : start + len(each)].min())
            start += len(each)
        worst = min(of_kinds, key=lambda kind: of_kinds[kind][name])
        figures[name] = {
            **{"cosine, mean": float(cosines.mean()), "cosine, p1": float(np.percentile(cosines, 1))},
            **{"cosine, min": float(cosines.min()), "worst kind": worst},
        }
    facts = {"model": manifest.model.name, "texts": len(texts), "kinds": len(kinds), **machine()}
    rows = [["artifact", *next(iter(figures.values()))]]
    for name, each in figures.items():
        rows.append([name, *(value if isinstance(value, str) else f"{value:.4f}" for value in each.values())])
    columns = [["worst cosine of the kind", *figures]]
    columns += [[kind, *(f"{value:.4f}" for value in each.values())] for kind, each in of_kinds.items()]
    tables = f"## Odd texts\n\n{markdown_table(rows)}\n{markdown_table(columns)}"
    print(tables)
    if options.json:
        write(options.json, json.dumps({"run": facts, "figures": figures, "kinds": of_kinds}, indent=1) + "\n")
    if options.markdown:
        write(options.markdown, f"{tables}\n{markdown_list(facts)}")


if __name__ == "__main__":
    main()
