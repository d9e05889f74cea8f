"""What is read with suspicion, as fuzz targets.

Each takes bytes and returns, whatever they are, or the code has a defect. `test_fuzz.py` gives them random damage, and
`fuzz_guided.py` what coverage leads to.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from firstvec import ModelMetadata, metadata, self_test
from firstvec.errors import ManifestError
from firstvec.manifest import FILE_NAME, File, Manifest
from firstvec.wordpiece import QuickTokenizer

Target = Callable[[bytes], object]
SHA = "0123456789abcdef" * 4
TEXTS = ("", "reset my password", "größer 日本 e\u0301 😀", "unaffable [SEP] x\0y", "##a a##a " * 9)


def manifest() -> dict[str, Any]:
    """A valid manifest, with one of everything."""
    from tests.runtime.test_manifest import document

    return document()


def self_tests() -> dict[str, Any]:
    """A valid self-test of two texts, for a model of two components."""
    vectors = base64.b64encode(array("f", [0.6, 0.8, 1.0, 0.0]).tobytes()).decode()
    return {
        "texts": [{"text": "one", "token_ids": [101, 7, 102]}, {"text": "two é", "token_ids": [101, 8, 9, 102]}],
        "artifacts": [
            {"id": each["id"], "vectors": vectors, "max_difference": 0.01} for each in manifest()["artifacts"]
        ],
    }


def parse_manifest(data: bytes) -> Manifest | None:
    """A manifest's bytes: valid, and the same after a round trip, or a short ManifestError that can be printed."""
    try:
        parsed = Manifest.parse(data, "/b/firstvec.json")
    except ManifestError as error:
        _check(error)
        return None
    again = parsed.to_json()
    assert Manifest.parse(again, "/b/firstvec.json") == parsed
    json.dumps(json.loads(again), ensure_ascii=False).encode()
    paths = [file.path.casefold() for file in parsed.files()]
    assert len({*paths, FILE_NAME}) == len(paths) + 1
    assert not any(one.startswith(f"{other}/") for one in paths for other in paths)
    for artifact in parsed.artifacts:
        assert artifact.files
        assert artifact.engine == {"onnx": "onnxruntime", "torchscript": "torch"}[artifact.format]
        for metric, threshold in artifact.quality.thresholds.items():
            value = getattr(artifact.quality, metric, threshold)
            assert (value <= threshold) if metric == "max_abs_diff" else (value >= threshold)
    return parsed


def _check(error: ManifestError) -> None:
    assert len(str(error)) < 1000, f"an error of {len(str(error))} characters"
    assert str(error).isprintable(), ascii(str(error))


def edit_manifest(data: bytes) -> None:
    """The same of a valid manifest of which a few values were edited: what bytes at random do not often reach."""
    parse_manifest(json.dumps(edited(manifest(), data)).encode())


def self_test_target(folder: Path) -> Target:
    """A self-test with the right digest whose content was edited, or is any bytes."""
    os.environ["FIRSTVEC_CACHE"] = str(folder / "a-file" / "cache")  # or it would remember every one of a million files
    (folder / "a-file").touch()
    bundle = _small_bundle(folder)

    def read(data: bytes) -> None:
        data = data if data[:1] == b"{" else json.dumps(edited(self_tests(), data)).encode()
        described = File(path="self_test.json", size=len(data), sha256=hashlib.sha256(data).hexdigest())
        (folder / "self_test.json").write_bytes(data)
        for artifact in bundle.artifacts[1:]:  # one fp32, one int8
            try:
                golden = self_test.read(bundle.replace(self_test=described), artifact)
            except ManifestError as error:
                _check(error)
            else:
                assert len(golden.vectors) == 2 * len(golden.token_ids) > 0
                assert 0 <= golden.max_difference <= 2

    return read


def note_target(folder: Path) -> Target:
    """What is remembered of a manifest, damaged: it is not believed, and what is known stays right."""
    os.environ["FIRSTVEC_CACHE"] = str(folder / "cache")
    _small_bundle(folder)
    metadata._seen.clear()
    known = ModelMetadata.from_cache(str(folder))
    assert known is not None
    (path,) = (folder / "cache" / "metadata").iterdir()
    written = path.read_bytes()

    def recall(data: bytes) -> None:
        content = bytearray(written if data[:1] < b"\x80" else data)
        if data[:1] < b"\x80":
            for at in range(1, len(data) - 2, 3):
                content[int.from_bytes(data[at : at + 2], "little") % len(content)] = data[at + 2]
        path.write_bytes(content)
        metadata._seen.clear()
        assert ModelMetadata.from_cache(str(folder)) == known

    return recall


def vocabulary_target(folder: Path) -> Target:
    """A vocabulary, rules and a text that are anything: ids that the rules allow, or None."""
    given = _small_bundle(folder).wordpiece
    assert given is not None

    def encode(data: bytes) -> None:
        settings = data[:4].ljust(4, b"\0")
        vocabulary, _, text = data[4:].decode("utf-8", "replace").partition("\0")
        rules = given.replace(
            lowercase=bool(settings[0] & 1),
            strip_accents=bool(settings[0] & 2),
            max_input_chars_per_word=settings[1] + 1,
            prefix_ids=(101,) * (settings[2] % 3),
            suffix_ids=(102,) * (settings[2] // 3 % 3),
        )
        length = 4 + settings[3]
        quick = QuickTokenizer(rules, vocabulary, length)
        known = {*range(vocabulary.removesuffix("\n").count("\n") + 1), rules.unk_id}
        for each in (text, *TEXTS):
            ids = quick.encode(each)
            if ids is not None:
                before, after = len(rules.prefix_ids), len(rules.suffix_ids)
                assert len(ids) <= length
                assert tuple(ids[:before]) == rules.prefix_ids
                assert tuple(ids[len(ids) - after :]) == rules.suffix_ids
                assert known.issuperset(ids[before : len(ids) - after])

    return encode


def _small_bundle(folder: Path) -> Manifest:
    """A bundle's folder with a manifest, and no other file, for vectors of two components."""
    document = manifest()
    document["model"]["embedding_dim"] = 2
    (folder / FILE_NAME).write_text(json.dumps(document), "utf-8")
    return Manifest.read(folder)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "manifest bytes": lambda _folder: parse_manifest,
    "manifest edits": lambda _folder: edit_manifest,
    "self-test": self_test_target,
    "metadata note": note_target,
    "vocabulary": vocabulary_target,
}
"""Each made for a folder that is its own."""


def seeds(target: str) -> Iterator[bytes]:
    """What the fuzzing of a target starts from."""
    if target == "manifest bytes":
        yield json.dumps(manifest(), indent=2).encode()
        yield json.dumps(manifest(), separators=(",", ":"), ensure_ascii=False).encode()
        yield b'{"format":"firstvec-bundle","x":' + b"[" * 5000 + b"]" * 5000 + b"}"
        for path in Path(__file__).parents[2].glob("artifacts/*/firstvec.json"):
            yield path.read_bytes()
    elif target == "vocabulary":
        yield b"\3\x64\4\x10[PAD]\n[UNK]\nreset\nmy\npass\n##word\n##a\na\n\0Reset my password\xc3\xa9"
        yield b"\0\0\1\0a\n##b\n##\n\n\0a ab abb"
    else:
        for count in (0, 1, 4):
            yield bytes(range(count * 5))
    if target == "self-test":
        yield b"{" + json.dumps(self_tests()).encode()


def words() -> list[str]:
    """What manifests and self-tests are made of: keys, values, and what JSON and the rules trip over."""
    found = {*_AWKWARD}
    for text in (json.dumps(manifest()), json.dumps(self_tests())):
        found |= {piece for piece in text.replace(": ", " ").replace(", ", " ").split() if len(piece) < 40}
    return sorted(found)


_AWKWARD = (
    *("NaN", "-Infinity", "1e999", "-0.0", "1" + "0" * 30, "-1", "1.0", "true", "null", "{}", "[]", '""', '"\\ud800"'),
    *('"../x"', '"nul.onnx"', '"CON/a"', '"a/b"', '"firstvec.json"', '"\\u0000"', '"x' + "y" * 300 + '"', "[" * 50),
    *(
        '"2.0"',
        '"1.9"',
        '"1.10"',
        '"0"',
        '"cpu"',
        '"avx2"',
        '"onnx"',
        '"torch"',
        '"fp32"',
        '"cosine_min"',
        '"tokenizer.json"',
    ),
)
_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        1 << 31,
        1 << 70,
        0.5,
        -0.0,
        1.5,
        1e308,
        "",
        "x",
        "x" * 300,
        "a\ud800",
        "\x1b[2J",
        {},
    ),
    *([], [1], [[]], ["cpu"], {"a": 1}, {"cosine_min": 2}, {"a\x1b": 1.0}, "1.0", "2", "1.10", "1." * 60, "nul.onnx"),
    *(
        "tokenizer.json/x",
        "FIRSTVEC.json",
        "../x",
        "onnx",
        "onnx/model.onnx",
        SHA,
        SHA.upper(),
        "AAAA",
        "AAAAAA==",
        "é",
    ),
    *("onnxruntime", "torch", "torchscript", "onnx-fp32", "int8", "avx2", "cuda", float(10**15), 10**400),
]


def edited(value: Any, data: bytes) -> Any:
    """``value`` after edits that ``data`` describes, four bytes each: where, what, and with what."""
    for at in range(0, min(len(data), 32) - 3, 4):
        where, what, which = int.from_bytes(data[at : at + 2], "little"), data[at + 2], data[at + 3]
        places = [*_places(value)]
        container, key = places[where % len(places)]
        if what % 8 == 0:
            del container[key]
        elif what % 8 == 1:
            other, name = places[(where + which) % len(places)]
            container[key] = copy.deepcopy(other[name])
        elif what % 8 == 2 and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif what % 8 == 3 and type(container[key]) is int:
            container[key] += which - 128
        elif what % 8 == 3 and type(container[key]) is float:
            container[key] += (which - 128) / 256
        elif what % 8 == 4 and isinstance(container[key], str):
            text = container[key]
            container[key] = text[:which] + chr(what * 257 % 0x3000) + text[which + 1 :]
        else:
            container[key] = copy.deepcopy(_VALUES[which % len(_VALUES)])
        if not [*_places(value)]:
            break
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
