"""Fuzz targets for everything that is parsed from bytes that nobody vouches for.

A target takes any bytes and returns. If it raises, the code has a defect. `test_fuzz.py` gives the targets bytes with
random damage. `fuzz_guided.py` gives them the bytes that coverage leads to.
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

from firstvec import ModelMetadata, NoCompatibleArtifact, Options, ResourceProfile, select
from firstvec.bundle import MANIFEST_NAME, metadata
from firstvec.bundle.manifest import File, Manifest
from firstvec.engines.table import ENGINES, INSTRUCTION_SETS, PRECISIONS
from firstvec.errors import ManifestError
from firstvec.loading import self_test
from firstvec.text.wordpiece import QuickTokenizer
from tests.manifests import SHA, UNKNOWN_PARTS, add_what_a_newer_firstvec_may_write, document

Target = Callable[[bytes], object]
TEXTS = ("", "reset my password", "größer 日本 e\u0301 😀", "unaffable [SEP] x\0y", "##a a##a " * 9)


METRICS = frozenset(
    (
        *("cosine_mean", "cosine_min", "cosine_p1", "odd_cosine_min", "max_abs_diff", "neighbour_overlap"),
        *("batch_cosine_min", "spearman"),
    )
)
"""The metrics that a manifest of version 1 may give a threshold. Other names belong to a newer version."""
MACHINE = ResourceProfile(
    machine="x86_64",
    cpu_count=2,
    isa=("avx2",),
    has_cuda=False,
    has_mps=False,
    available_memory_mb=4000.0,
    is_ssd=True,
    recommended_batch_size=16,
    recommended_device="cpu",
    engines=(("onnxruntime", "1.32.0"), ("tokenizers", "0.22.1"), ("torch", "2.13.0+cpu")),
    loaded_engines=(),
)
"""A machine for which every manifest that can be parsed is selected from."""


def newer_manifest() -> dict[str, Any]:
    """Return a manifest of a newer minor version: unknown keys, and for each unknown part an artifact that has it."""
    value = document()
    add_what_a_newer_firstvec_may_write(value)
    return value


def self_tests() -> dict[str, Any]:
    """Return a valid self-test of two texts, for a model of two components."""
    vectors = base64.b64encode(array("f", [0.6, 0.8, 1.0, 0.0]).tobytes()).decode()
    return {
        "texts": [{"text": "one", "token_ids": [101, 7, 102]}, {"text": "two é", "token_ids": [101, 8, 9, 102]}],
        "artifacts": [
            {"id": each["id"], "vectors": vectors, "max_difference": 0.01} for each in document()["artifacts"]
        ],
    }


def parse_manifest(data: bytes) -> Manifest | None:
    """Parse a manifest and select from it.

    The bytes are valid and the same after a round trip, or the error is a short ManifestError that can be printed. Of a
    valid manifest, `select` takes only an artifact of which this firstvec knows everything.
    """
    try:
        parsed = Manifest.parse(data, "/b/firstvec.json")
    except ManifestError as error:
        _check_error(error)
        return None
    again = parsed.to_json()
    assert Manifest.parse(again, "/b/firstvec.json") == parsed
    json.dumps(json.loads(again), ensure_ascii=False).encode()
    paths = [file.path.casefold() for file in parsed.files()]
    assert len({*paths, MANIFEST_NAME}) == len(paths) + 1
    assert not any(one.startswith(f"{other}/") for one in paths for other in paths)
    for artifact in parsed.artifacts:
        assert artifact.files
        for metric in METRICS & artifact.quality.thresholds.keys():
            value, threshold = getattr(artifact.quality, metric), artifact.quality.thresholds[metric]
            assert (value <= threshold) if metric == "max_abs_diff" else (value >= threshold)
    for strategy in ("lazy", "quantized"):
        _check_selection(parsed, strategy)
    return parsed


def _check_selection(parsed: Manifest, strategy: str) -> None:
    try:
        choice = select(parsed, MACHINE, Options(strategy=strategy))
    except NoCompatibleArtifact as error:
        rejected, candidates = error.rejected, ()
    else:
        rejected, candidates = tuple((each.id, reason) for each, reason in choice.rejected), choice.candidates
    named = {*(id_ for id_, _ in rejected), *(artifact.id for artifact in candidates)}
    assert named == {artifact.id for artifact in parsed.artifacts}
    assert all(reason for _, reason in rejected)
    for artifact in candidates:
        engine = ENGINES[artifact.engine]
        assert artifact.format in engine.formats
        assert artifact.precision in PRECISIONS
        assert artifact.isa is None or (artifact.isa in INSTRUCTION_SETS and artifact.isa in MACHINE.isa)
        assert "cpu" in artifact.devices


def _check_error(error: ManifestError) -> None:
    assert len(str(error)) < 1000, f"an error of {len(str(error))} characters"
    assert str(error).isprintable(), ascii(str(error))


def edit_manifest(data: bytes) -> None:
    """Do what `parse_manifest` does, with a valid manifest of which a few values were edited.

    Random bytes seldom give such a manifest.
    """
    parse_manifest(json.dumps(edited(document(), data)).encode())


def self_test_target(folder: Path) -> Target:
    """Return the target that reads a self-test. Its digest is right, and its content was edited or is any bytes."""
    # A cache that cannot be written. Otherwise the cache would remember every one of a million files.
    os.environ["FIRSTVEC_CACHE"] = str(folder / "a-file" / "cache")
    (folder / "a-file").touch()
    bundle = _small_bundle(folder)

    def read(data: bytes) -> None:
        data = data if data[:1] == b"{" else json.dumps(edited(self_tests(), data)).encode()
        described = File(path="self_test.json", size=len(data), sha256=hashlib.sha256(data).hexdigest())
        (folder / "self_test.json").write_bytes(data)
        for artifact in bundle.artifacts[1:]:  # one fp32, one int8
            try:
                golden = self_test.read_golden(bundle.replace(self_test=described), artifact)
            except ManifestError as error:
                _check_error(error)
            else:
                assert len(golden.vectors) == 2 * len(golden.token_ids) > 0
                assert 0 <= golden.max_difference <= 2

    return read


def note_target(folder: Path) -> Target:
    """Return the target that damages the cache's note about a manifest. The metadata stays right in any case."""
    os.environ["FIRSTVEC_CACHE"] = str(folder / "cache")
    _small_bundle(folder)
    metadata._seen.clear()
    known = ModelMetadata.from_cache(str(folder))
    assert known is not None
    (path,) = (folder / "cache" / "metadata").iterdir()
    written = path.read_bytes()

    def read(data: bytes) -> None:
        content = bytearray(written if data[:1] < b"\x80" else data)
        if data[:1] < b"\x80":
            for at in range(1, len(data) - 2, 3):
                content[int.from_bytes(data[at : at + 2], "little") % len(content)] = data[at + 2]
        path.write_bytes(content)
        metadata._seen.clear()
        assert ModelMetadata.from_cache(str(folder)) == known

    return read


def vocabulary_target(folder: Path) -> Target:
    """Return the target for any vocabulary, rules and text. The result is None, or ids that the rules allow."""
    given = _small_bundle(folder).wordpiece
    assert given is not None

    def tokenize(data: bytes) -> None:
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
            ids = quick.tokenize(each)
            if ids is not None:
                before, after = len(rules.prefix_ids), len(rules.suffix_ids)
                assert len(ids) <= length
                assert tuple(ids[:before]) == rules.prefix_ids
                assert tuple(ids[len(ids) - after :]) == rules.suffix_ids
                assert known.issuperset(ids[before : len(ids) - after])

    return tokenize


def _small_bundle(folder: Path) -> Manifest:
    """Make a bundle's folder that holds only a manifest, for vectors of two components."""
    value = document()
    value["model"]["embedding_dim"] = 2
    (folder / MANIFEST_NAME).write_text(json.dumps(value), "utf-8")
    return Manifest.read(folder)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "manifest bytes": lambda _folder: parse_manifest,
    "manifest edits": lambda _folder: edit_manifest,
    "self-test": self_test_target,
    "metadata note": note_target,
    "vocabulary": vocabulary_target,
}
"""Name → function that makes the target. Each target has a folder of its own."""


def seeds(target: str) -> Iterator[bytes]:
    """Yield the inputs from which the fuzzing of a target starts."""
    if target == "manifest bytes":
        yield json.dumps(document(), indent=2).encode()
        yield json.dumps(document(), separators=(",", ":"), ensure_ascii=False).encode()
        yield json.dumps(newer_manifest()).encode()
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
    """Return words for manifests and self-tests: keys, values, and values that JSON or the rules may trip over."""
    found = {*_AWKWARD}
    for text in (json.dumps(document()), json.dumps(self_tests())):
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
    *(*UNKNOWN_PARTS.values(), [*UNKNOWN_PARTS.values()], {"cosine_of_a_newer_minor_version": 2.0}),
]


def edited(value: Any, data: bytes) -> Any:
    """Return ``value`` after the edits that ``data`` describes. Four bytes are one edit: place, kind and new value."""
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
