"""A manifest: what is valid, what a newer firstvec may add, and the place that every error names."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstvec.bundle import MANIFEST_NAME
from firstvec.bundle.manifest import MAX_BYTES, MAX_PATH, File, Manifest, keep_artifacts
from firstvec.errors import ManifestError, UnsupportedManifestVersion
from tests.manifests import FREE, SHA, UNKNOWN_PARTS, add_what_a_newer_firstvec_may_write, document, file

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value of the document."""

ARTIFACT = ("artifacts", 2)
FILE = (*ARTIFACT, "files", 0)
QUALITY = (*ARTIFACT, "quality")

OPTIONAL = {
    ("model", "revision"),
    ("model", "default_prompt_name"),
    ("model", "license"),
    *(("artifacts", index, key) for index in range(3) for key in ("isa", "isa_reason")),
    *(("artifacts", index, "quality", key) for index in range(3) for key in ("spearman", "matryoshka")),
    *(("artifacts", index, "quality", "odd_cosine_min") for index in range(3)),
    ("wordpiece",),
    ("wordpiece", "tables"),
    ("quick_tokenizer",),
    ("left_out",),
    ("self_test",),
    ("vector_ranges",),
}


def text(place: Place) -> str:
    """Return the place as errors spell it, for example ``artifacts[2].files[0].sha256``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


def value_at(value: Any, place: Place) -> Any:
    """Return the value to which the place leads."""
    for key in place:
        value = value[key]
    return value


def has_free_keys(place: Place) -> bool:
    """Return whether the object at the place may have any keys."""
    return bool(place) and place[-1] in FREE


def changed(place: Place, value: object) -> dict[str, Any]:
    """Return a manifest of which one value was changed."""
    result = document()
    value_at(result, place[:-1])[place[-1]] = value
    return result


def parse(value: object) -> Manifest:
    """Parse a document."""
    return Manifest.parse(json.dumps(value).encode(), "/b/firstvec.json")


def refused(value: object, place: Place | str = ()) -> ManifestError:
    """Return the error that a document raises. The error must name that place."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(ManifestError) as caught:
        Manifest.parse(data, "/b/firstvec.json")
    where = place if isinstance(place, str) else text(place)
    assert caught.value.path == (f"/b/firstvec.json: {where}" if where else "/b/firstvec.json")
    assert str(caught.value).startswith(f"{caught.value.path}: {caught.value.reason}; ")
    return caught.value


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every value of a document that is no object or array, and its place."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, dict | list):
        yield place, value
    for key, child in children:
        yield from leaves(child, (*place, key))


def containers(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every object and array of a document, and its place."""
    if isinstance(value, dict | list):
        yield place, value
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from containers(child, (*place, key))


# One file and one artifact are enough, because the others go through the same code.
SCALARS = [
    (place, value)
    for place, value in leaves(document())
    if place[0] not in ("artifacts", "support_files") or place[1] == 2 or place[:2] == ("support_files", 1)
]
WRONG: dict[type, tuple[object, ...]] = {
    str: (1, 1.5, True, ["x"], {"x": "x"}),
    int: ("1", 1.5, 1.0, True, False, [1], {}),
    bool: (0, 1, "true", [True], {}),
    float: ("0.9", True, False, [0.9], {}),
}


def wrong_types() -> Iterator[Any]:
    for place, value in SCALARS:
        for wrong in (*WRONG[type(value)], *(() if place in OPTIONAL else (None,))):
            yield pytest.param(place, wrong, id=f"{text(place)}={wrong!r}")


# --- What is valid ---------------------------------------------------------------------------------------------------


def test_a_manifest_is_parsed_into_records() -> None:
    manifest = parse(document())
    assert manifest.path == "/b/firstvec.json"
    assert manifest.root == "/b"
    assert manifest.model.name == "organization/tiny"
    assert manifest.model.prompts == {"query": "", "document": "passage: "}
    assert manifest.tokenizer == File(path="tokenizer.json", size=1234, sha256=SHA)
    assert [each.id for each in manifest.artifacts] == ["torchscript-fp32", "onnx-fp32", "onnx-int8-avx2"]
    assert manifest.artifacts[1].devices == ("cpu", "cuda")
    assert manifest.artifacts[1].size == 2 * 1234
    assert manifest.artifacts[2].quality.cosine_min == 0.97
    assert [each.path for each in manifest.files()] == [
        "tokenizer.json",
        "vocab.txt",
        "native/wordpiece.fvt",
        "native/unigram.fvt",
        "self_test.json",
        "torchscript/model.pt",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/int8.onnx",
        "onnx/int8.onnx_data",
        "config.json",
        "1_Pooling/config.json",
        "vector_ranges.f32",
    ]


def test_every_value_of_the_document_is_in_the_records() -> None:
    def plain(value: Any) -> Any:
        if hasattr(value, "to_dict"):
            return {name: plain(inner) for name, inner in value.to_dict().items()}
        return [plain(inner) for inner in value] if isinstance(value, tuple) else value

    expected = document()
    assert expected.pop("format") == "firstvec-bundle"
    assert expected.pop("format_version") == "1.2"
    assert plain(parse(document())) == expected | {"path": "/b/firstvec.json", "absent": []}


def test_writing_and_parsing_gives_an_equal_manifest_and_the_same_bytes() -> None:
    manifest = parse(document())
    data = manifest.to_json()
    again = Manifest.parse(data, manifest.path)
    assert again == manifest
    assert again.to_json() == data
    written = json.loads(data)
    assert len(written.pop("checksum")) == 8
    assert written == document()


def test_a_built_manifest_is_written_as_it_was_read(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    assert manifest.root == str(tiny_built)
    assert manifest.to_json() == (tiny_built / MANIFEST_NAME).read_bytes()
    assert {each.path for each in manifest.files()} | {MANIFEST_NAME} == {
        path.relative_to(tiny_built).as_posix() for path in tiny_built.rglob("*") if path.is_file()
    }


def test_any_flipped_bit_is_noticed() -> None:
    data = parse(document()).to_json()
    key = range(data.rindex(b'"checksum"') + 1, data.rindex(b'": "'))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        try:
            manifest = Manifest.parse(bytes(damaged), "/b/firstvec.json")
        except ManifestError:
            continue
        # A key that is not known says nothing, and all the rest is as it was.
        assert position in key
        assert manifest == parse(document())


def test_the_checksum_is_the_one_that_the_format_describes() -> None:
    data = parse(document()).to_json()
    digits = data[-12:-4]
    assert digits.decode() == f"{zlib.crc32(data.replace(digits, b'')):08x}"


@pytest.mark.parametrize("digits", ["0" * 8, "", "0", "x", "é" * 8, 0, {}], ids=repr)
def test_a_checksum_that_is_not_that_of_the_bytes_is_refused(digits: object) -> None:
    refused(changed(("checksum",), digits), ("checksum",))


def test_a_manifest_that_was_changed_and_kept_its_checksum_is_refused() -> None:
    data = parse(document()).to_json().replace(b'"unk_id": 100', b'"unk_id": 101')
    assert "the manifest was changed" in refused(data, ("checksum",)).reason
    assert Manifest.parse(json.dumps({**json.loads(data), "checksum": None}).encode()).wordpiece is not None


def test_text_beyond_ascii_survives_as_ascii_bytes() -> None:
    manifest = parse(changed(("model", "prompts", "query"), "Frage: «größer» 日本 😀"))
    assert manifest.to_json().isascii()
    assert Manifest.parse(manifest.to_json(), manifest.path) == manifest


def test_utf_8_is_read_as_utf_8() -> None:
    data = json.dumps(changed(("model", "name"), "größe/日本"), ensure_ascii=False).encode()
    assert Manifest.parse(data).model.name == "größe/日本"


@pytest.mark.parametrize("place", sorted(OPTIONAL, key=text), ids=text)
@pytest.mark.parametrize("missing", [False, True])
def test_an_optional_value_may_be_null_or_missing(place: Place, missing: bool) -> None:
    value = changed(place, None)
    if missing:
        del value_at(value, place[:-1])[place[-1]]
    manifest = parse(value)
    assert None in [
        manifest.model.revision,
        manifest.model.default_prompt_name,
        manifest.model.license,
        manifest.wordpiece,
        manifest.wordpiece and manifest.wordpiece.tables,
        manifest.quick_tokenizer,
        manifest.left_out,
        manifest.self_test,
        *(each for item in manifest.artifacts for each in (item.isa, item.isa_reason)),
        *(each for item in manifest.artifacts for each in (item.quality.spearman, item.quality.matryoshka)),
        *(item.quality.odd_cosine_min for item in manifest.artifacts),
    ]


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.999"])
def test_a_newer_minor_version_is_accepted(version: str) -> None:
    assert parse(changed(("format_version",), version)).model.name == "organization/tiny"


def test_unknown_keys_are_ignored_everywhere() -> None:
    value = document()
    add_what_a_newer_firstvec_may_write(value)
    del value["artifacts"][: len(UNKNOWN_PARTS)]
    assert {place for place, each in containers(value) if "added_in_1_7" in each} == {
        place
        for place, each in containers(value)
        if isinstance(each, dict) and not has_free_keys(place) and "added_in_1_7" not in place
    }
    assert parse(value) == parse(document())


@pytest.mark.parametrize("key", ["cosine_mean", "cosine_p1", "neighbour_overlap", "max_abs_diff", "spearman"])
def test_a_whole_number_is_a_number(key: str) -> None:
    number = getattr(parse(changed((*QUALITY, key), 1)).artifacts[2].quality, key)
    assert number == 1.0
    assert isinstance(number, float)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("support_files",), [file("vector_ranges.f32")]),
        (("built_with",), {}),
        (("model", "prompts"), {"query": ""}),
        (("model", "prompts"), {"query": "Instruct: find\nQuery:\t"}),
        (("model", "name"), "größe/日本\u3000😀\u200b"),
        ((*FILE, "path"), "console/com10/nulls/lpt.com1"),
        ((*FILE, "path"), "onnx-/int8.onnx"),
        ((*FILE, "path"), "tokenizer.json_data/x"),
        ((*ARTIFACT, "engine_below"), "1.23.0.1"),
        ((*FILE, "size"), 0),
        ((*FILE, "path"), "a/" * 99 + "bc"),
        ((*FILE, "path"), "A-z_0.9/x..y/-_-"),
        ((*ARTIFACT, "engine_min"), "1"),
        ((*ARTIFACT, "engine_min"), "1.23.0.4"),
        ((*QUALITY, "cosine_min"), -1),
        (("wordpiece", "prefix_ids"), []),
        (("wordpiece", "suffix_ids"), [0] * 127),
        (("wordpiece", "added_tokens"), []),
    ],
)
def test_a_value_at_the_edge_is_accepted(place: Place, value: object) -> None:
    assert Manifest.parse(parse(changed(place, value)).to_json(), "/b/firstvec.json") == parse(changed(place, value))


def test_the_ranges_are_one_of_the_files_that_every_tool_hashes_and_packs() -> None:
    error = refused(changed(("support_files",), [file("config.json")]), ("vector_ranges", "file"))
    assert error.reason == "'vector_ranges.f32' is not one of the support_files"
    assert parse(changed(("vector_ranges",), None)).vector_ranges is None


def test_a_manifest_of_exactly_the_largest_size_is_accepted() -> None:
    data = json.dumps(document()).encode()
    assert Manifest.parse(data.ljust(MAX_BYTES)).model.name == "organization/tiny"


# --- What a newer firstvec writes ------------------------------------------------------------------------------------


def newer_document() -> dict[str, Any]:
    """Return a manifest of format 1.7: unknown keys, and artifacts of which one part is unknown, beside known ones."""
    value = document()
    add_what_a_newer_firstvec_may_write(value)
    return value


def test_artifacts_with_an_unknown_part_are_kept() -> None:
    manifest = parse(newer_document())
    assert [each.id for each in manifest.artifacts] == [
        *(f"unknown-{part}" for part in UNKNOWN_PARTS),
        *("torchscript-fp32", "onnx-fp32", "onnx-int8-avx2"),
    ]
    new = {each.id.removeprefix("unknown-"): each for each in manifest.artifacts}
    for part, value in UNKNOWN_PARTS.items():
        assert (new[part].devices[0] if part == "device" else getattr(new[part], part)) == value
    assert manifest.artifacts[len(UNKNOWN_PARTS) :] == parse(document()).artifacts


def test_the_files_of_artifacts_with_an_unknown_part_belong_to_the_bundle() -> None:
    """So they are signed, verified and not taken for files that nobody listed."""
    added = [f"new/{part}.{ending}" for part in UNKNOWN_PARTS for ending in ("bin", "data")]
    expected = sorted([*added, *(each.path for each in parse(document()).files())])
    assert sorted(each.path for each in parse(newer_document()).files()) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "openvino"),
        ("precision", "FP32"),
        ("engine", "os"),
        ("isa", "sse2"),
        ("devices", ["cpu", "tpu"]),
        ("devices", ["tpu"]),
    ],
)
def test_an_unknown_value_is_accepted_and_written_again(key: str, value: object) -> None:
    manifest = parse(changed((*ARTIFACT, key), value))
    assert json.loads(manifest.to_json())["artifacts"][2][key] == value
    assert Manifest.parse(manifest.to_json(), manifest.path) == manifest


@pytest.mark.parametrize(("index", "engine"), [(0, "onnxruntime"), (2, "torch")])
def test_an_engine_that_does_not_run_the_format_is_left_to_the_selection(index: int, engine: str) -> None:
    assert parse(changed(("artifacts", index, "engine"), engine)).artifacts[index].engine == engine


@pytest.mark.parametrize("key", ["format", "precision", "engine", "isa"])
@pytest.mark.parametrize("value", ["", "x" * 10_001, "amx\x1b[2J", 1, ["amx"]], ids=ascii)
def test_an_unknown_value_must_be_a_name(key: str, value: object) -> None:
    refused(changed((*ARTIFACT, key), value), (*ARTIFACT, key))


# --- keep_artifacts --------------------------------------------------------------------------------------------------

IDS = ["torchscript-fp32", "onnx-fp32", "onnx-int8-avx2"]


@pytest.mark.parametrize("ids", [IDS, IDS[:1], IDS[1:], {"onnx-fp32", "another"}], ids=str)
def test_of_a_manifest_of_today_the_bytes_are_those_that_are_written_anew(ids: list[str]) -> None:
    manifest = parse(document())
    rest = manifest.replace(artifacts=tuple(each for each in manifest.artifacts if each.id in ids))
    assert keep_artifacts(manifest.to_json(), ids) == rest.to_json()


def test_of_a_built_manifest_the_bytes_are_those_that_are_written_anew(tiny_built: Path) -> None:
    data = (tiny_built / MANIFEST_NAME).read_bytes()
    manifest = Manifest.parse(data)
    assert keep_artifacts(data, [each.id for each in manifest.artifacts]) == data
    rest = manifest.replace(artifacts=manifest.artifacts[:1])
    assert keep_artifacts(data, [rest.artifacts[0].id]) == rest.to_json()


def test_unknown_keys_of_what_is_kept_are_kept() -> None:
    value = newer_document()
    ids = ["unknown-isa", "onnx-fp32"]
    data = keep_artifacts(json.dumps(value).encode(), ids)
    written = json.loads(data)
    assert [each.id for each in Manifest.parse(data).artifacts] == ids  # the checksum is that of the bytes
    assert len(written.pop("checksum")) == 8
    value["artifacts"] = [each for each in value["artifacts"] if each["id"] in ids]
    assert written == value
    assert [*written] == [*value]


# --- Wrong structure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "wrong"), list(wrong_types()))
def test_a_value_of_another_type_is_refused(place: Place, wrong: object) -> None:
    refused(changed(place, wrong), place)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        pytest.param(place, wrong, id=f"{text(place)}={wrong!r}")
        for place, _ in containers(document())
        for wrong in ("text", 1, True, None)
        if place and not (wrong is None and place in OPTIONAL)
    ],
)
def test_a_scalar_in_place_of_an_object_or_array_is_refused(place: Place, wrong: object) -> None:
    refused(changed(place, wrong), place)


@pytest.mark.parametrize("place", [place for place, _ in containers(document()) if place], ids=text)
def test_an_array_in_place_of_an_object_and_the_reverse_are_refused(place: Place) -> None:
    assert (
        "not an " in refused(changed(place, [] if isinstance(value_at(document(), place), dict) else {}), place).reason
    )


@pytest.mark.parametrize("ids", [[-1], [1 << 32], [1.0], [True], ["1"], [None], [[1]]])
@pytest.mark.parametrize("key", ["prefix_ids", "suffix_ids"])
def test_a_token_id_that_is_not_a_small_integer_is_refused(key: str, ids: list[object]) -> None:
    refused(changed(("wordpiece", key), ids), ("wordpiece", key, 0))


def test_more_tokens_around_a_text_than_the_model_takes_are_refused() -> None:
    assert "max_seq_length" in refused(changed(("wordpiece", "suffix_ids"), [0] * 128), ("wordpiece",)).reason


def keys() -> list[Place]:
    return [
        (*place, key)
        for place, container in containers(document())
        if isinstance(container, dict) and not has_free_keys(place)
        for key in container
        if (*place, key) not in OPTIONAL
    ]


@pytest.mark.parametrize("place", keys(), ids=text)
def test_a_missing_key_is_named(place: Place) -> None:
    value = document()
    del value_at(value, place[:-1])[place[-1]]
    assert refused(value, place).reason == "is missing"


@pytest.mark.parametrize(
    "place", [("artifacts",), (*ARTIFACT, "files"), (*ARTIFACT, "devices")], ids=["artifacts", "files", "devices"]
)
def test_an_empty_list_is_refused(place: Place) -> None:
    assert "is empty" in refused(changed(place, []), place).reason


@pytest.mark.parametrize(
    "place", [place for place, value in SCALARS if isinstance(value, str) and not has_free_keys(place[:-1])], ids=text
)
@pytest.mark.parametrize("wrong", ["", "x" * 10_001], ids=["empty", "long"])
def test_an_empty_or_overlong_string_is_refused(place: Place, wrong: str) -> None:
    assert len(str(refused(changed(place, wrong), place))) < 400


# --- Wrong values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), "firstvec"),
        (("model", "source_sha256"), SHA.upper()),
        ((*FILE, "sha256"), SHA[:-1]),
        ((*FILE, "sha256"), SHA + "0"),
        ((*FILE, "sha256"), SHA[:-1] + "g"),
        ((*FILE, "sha256"), SHA[:-1] + "\u0660"),
        (("inputs_sha256",), "sha256:" + SHA[7:]),
        (("model", "embedding_dim"), 0),
        (("model", "embedding_dim"), -384),
        (("model", "max_seq_length"), 0),
        (("model", "pad_token_id"), -1),
        ((*FILE, "size"), -1),
        ((*FILE, "size"), (1 << 40) + 1),
        ((*QUALITY, "sentences"), 0),
        ((*QUALITY, "cosine_mean"), 1.0001),
        ((*QUALITY, "cosine_min"), -1.0001),
        ((*QUALITY, "batch_cosine_min"), 2),
        ((*QUALITY, "cosine_p1"), -2),
        ((*QUALITY, "max_abs_diff"), -1e-9),
        ((*QUALITY, "neighbour_overlap"), 1.5),
        ((*QUALITY, "spearman"), 100.5),
    ],
    ids=repr,
)
def test_a_value_outside_its_range_is_refused(place: Place, value: object) -> None:
    refused(changed(place, value), place)


@pytest.mark.parametrize(
    "version", ["1.23rc1", "1.23+cpu", ">=1", ".", "1.", ".1", "1..2", "1,2", "-1", "1" * 10, "١.٢"]
)
@pytest.mark.parametrize("key", ["engine_min", "engine_below"])
def test_an_engine_version_that_is_no_plain_number_is_refused(key: str, version: str) -> None:
    refused(changed((*ARTIFACT, key), version), (*ARTIFACT, key))


@pytest.mark.parametrize(
    "version", ["1", "1.", ".0", "1.0.0", "v1.0", "1.0 ", "1.-1", "one.two", "1." + "0" * 30, "١.٠"]
)
def test_a_format_version_that_is_not_major_and_minor_is_refused(version: str) -> None:
    error = refused(changed(("format_version",), version), ("format_version",))
    assert not isinstance(error, UnsupportedManifestVersion)


@pytest.mark.parametrize("version", ["2.0", "10.0", "99.1"])
def test_an_unknown_major_version_says_upgrade(version: str) -> None:
    # Nothing else of a newer format can be relied upon.
    with pytest.raises(UnsupportedManifestVersion) as caught:
        parse({"format": "firstvec-bundle", "format_version": version, "model": []})
    assert caught.value.version == version
    assert caught.value.path == "/b/firstvec.json"
    assert f"format_version {version}" in str(caught.value)
    assert "upgrade firstvec" in str(caught.value)


@pytest.mark.parametrize("place", [("model", "embedding_dim"), (*FILE, "size"), (*QUALITY, "sentences")], ids=text)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_huge_integer_is_refused_in_few_words(place: Place, sign: int) -> None:
    assert len(str(refused(changed(place, sign * 10**400), place))) < 200


def test_a_huge_integer_in_place_of_a_number_is_refused() -> None:
    refused(changed((*QUALITY, "max_abs_diff"), 10**400), (*QUALITY, "max_abs_diff"))


@pytest.mark.parametrize("key", ["cosine_min", "max_abs_diff", "spearman"])
@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_overflows_is_refused(key: str, number: str) -> None:
    data = json.dumps(changed((*QUALITY, key), "HERE")).replace('"HERE"', number)
    assert "not a finite number" in refused(data.encode(), (*QUALITY, key)).reason


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("place", [(*QUALITY, "cosine_min"), (*QUALITY, "max_abs_diff"), ("added",)], ids=text)
def test_what_json_does_not_know_as_a_number_is_refused(place: Place, constant: str) -> None:
    data = json.dumps(changed(place, "HERE")).replace('"HERE"', constant)
    assert constant in refused(data.encode()).reason


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/",
        "..",
        "../model.onnx",
        "onnx/../../model.onnx",
        "onnx/..",
        ".",
        "./model.onnx",
        "onnx/./model.onnx",
        "onnx//model.onnx",
        "onnx/",
        "onnx\\model.onnx",
        "..\\model.onnx",
        "C:/model.onnx",
        "C:model.onnx",
        "model.onnx:stream",
        ".hidden",
        "onnx/.hidden",
        "onnx./model",
        "model.",
        "model ",
        " model",
        "a b",
        "~/model",
        "$HOME",
        "%2e%2e/model",
        "model\n",
        "model\0",
        "mod\x1bel",
        "mod\x7fel",
        "modèle",
        "mode\u0301le",
        "model\u2044x",
        "．．/model",
        "\ufb01le",
        "model\u202egpj.exe",
        "a" * (MAX_PATH + 1),
        "a/" * (MAX_PATH // 2) + "b",
    ],
    ids=ascii,
)
def test_an_unsafe_path_is_refused(path: str) -> None:
    error = refused(changed((*FILE, "path"), path), (*FILE, "path"))
    assert len(str(error)) < 400
    assert str(error).isprintable()


@pytest.mark.parametrize("place", [("tokenizer", "path"), ("support_files", 1, "path")], ids=text)
def test_the_paths_of_the_other_files_are_checked_too(place: Place) -> None:
    refused(changed(place, "../up"), place)


@pytest.mark.parametrize(
    "path",
    ["firstvec.json", "FirstVec.JSON", "tokenizer.json", "Tokenizer.json", "ONNX/model.onnx", "onnx/int8.onnx_data"],
)
def test_two_files_of_one_name_are_refused_in_any_case(path: str) -> None:
    assert f"{path.lower()!r} occurs twice" in refused(changed((*FILE, "path"), path), "files").reason


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("tokenizer.json/onnx", "tokenizer.json"),
        ("Tokenizer.JSON/a/b/c", "tokenizer.json"),
        ("firstvec.json/x", "firstvec.json"),
        ("onnx", "onnx"),
        ("ONNX", "onnx"),
        ("1_pooling", "1_pooling"),
    ],
)
def test_a_file_that_is_the_folder_of_another_is_refused_in_any_case(path: str, file: str) -> None:
    error = refused(changed((*FILE, "path"), path), "files")
    assert f"{file!r} is a file, and the folder of another file" in error.reason


@pytest.mark.parametrize(
    "path", ["con", "NUL.onnx", "onnx/Com1", "aux/model.onnx", "onnx/lpt9.tar.gz", "x/prn.", "com0", "a/CON.a.b/c"]
)
def test_the_names_of_windows_devices_are_refused(path: str) -> None:
    error = refused(changed((*FILE, "path"), path), "files" if path != "x/prn." else (*FILE, "path"))
    assert "device on Windows" in error.reason or path == "x/prn."


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "name"), "organization/\ud800"),
        (("model", "prompts", "query"), "\udfff: "),
        (("wordpiece", "added_tokens", 1), "[SEP]\udbff\udbff"),
        (("artifacts", 1, "files", 1, "path"), "m\ud800"),
        (("built_with", "torch"), "\udc00\ud800"),
        (("unknown",), [1, ["\ud800"]]),
        (("model", "unknown"), {"a\ud800": 1}),
    ],
    ids=ascii,
)
def test_a_lone_surrogate_is_refused_wherever_it_is(place: Place, value: object) -> None:
    error = refused(changed(place, value), f"{text(place)}[1][0]" if place == ("unknown",) else place)
    assert "lone surrogate" in error.reason
    assert str(error).isprintable()


@pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\x7f", "\x9b"], ids=ascii)
@pytest.mark.parametrize(
    "place",
    [("model", "name"), ("model", "source"), (*ARTIFACT, "id"), (*ARTIFACT, "isa_reason"), (*QUALITY, "measured_with")],
    ids=text,
)
def test_control_characters_are_refused_in_names(place: Place, character: str) -> None:
    error = refused(changed(place, f"a{character}[2Jb"), place)
    assert "control characters" in error.reason
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("changes", "place", "reason"),
    [
        (
            {"cosine_min": 0.91, "thresholds": {"cosine_min": 0.97}},
            "cosine_min",
            "0.91 is below the 0.97 that the build enforced",
        ),
        (
            {"max_abs_diff": 0.02, "thresholds": {"max_abs_diff": 0.01}},
            "max_abs_diff",
            "0.02 is above the 0.01 that the build enforced",
        ),
        ({"thresholds": {"neighbour_overlap": 0.950001}}, "neighbour_overlap", "below"),
        ({"thresholds": {"cosine_mean": 0.9, "batch_cosine_min": 1.5}}, "batch_cosine_min", "below"),
        ({"thresholds": {"cosine_p1": 1}}, "cosine_p1", "below"),
        ({"thresholds": {"spearman": 82}}, "spearman", "below"),
        ({"thresholds": {"odd_cosine_min": 0.94}}, "odd_cosine_min", "below"),
        (
            {"spearman": None, "thresholds": {"spearman": 82}},
            "spearman",
            "is missing, though the build enforced 82",
        ),
    ],
    ids=str,
)
def test_an_artifact_that_misses_its_own_threshold_is_refused(changes: dict[str, Any], place: str, reason: str) -> None:
    value = document()
    value["artifacts"][2]["quality"] |= changes
    assert reason in refused(value, (*QUALITY, place)).reason


@pytest.mark.parametrize(
    "thresholds",
    [
        {"cosine_min": 0.97, "max_abs_diff": 0.01, "spearman": 81.9},  # exactly
        {"cosine_of_a_newer_minor_version": 2.0, "sentences": 1e9, "matryoshka": 1.0},
        {},
    ],
    ids=str,
)
def test_thresholds_that_are_met_and_unknown_ones_are_accepted(thresholds: dict[str, float]) -> None:
    assert parse(changed((*QUALITY, "thresholds"), thresholds)).artifacts[2].quality.thresholds == thresholds


@pytest.mark.parametrize(("odd", "worst"), [(None, 0.97), (0.93, 0.93), (0.98, 0.97)])
def test_the_worst_cosine_is_that_of_sentences_and_odd_texts(odd: float | None, worst: float) -> None:
    assert parse(changed((*QUALITY, "odd_cosine_min"), odd)).artifacts[2].quality.worst_cosine == worst


def test_a_key_that_cannot_be_shown_is_not_shown() -> None:
    for name in ("a\x1b[2J", "x" * 10_000):
        assert (
            len(error := str(refused(changed((*QUALITY, "thresholds"), {name: 1.0}), (*QUALITY, "thresholds")))) < 400
        )
        assert error.isprintable()
        with pytest.raises(ManifestError) as caught:
            parse(changed(("built_with",), {name: 1}))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("low", "below"),
    [("2", "2"), ("2.0", "2"), ("2", "2.0.0"), ("2.1", "2"), ("1.10", "1.9"), ("3", "2.999"), ("0", "0.0")],
)
def test_an_empty_range_of_engine_versions_is_refused(low: str, below: str) -> None:
    value = document()
    value["artifacts"][2] |= {"engine_min": low, "engine_below": below}
    assert "not below" in refused(value, (*ARTIFACT, "engine_min")).reason


@pytest.mark.parametrize(("low", "below"), [("1.9", "1.10"), ("1.23", "1.23.1"), ("0", "0.0.1"), ("9", "10")])
def test_versions_are_compared_as_numbers(low: str, below: str) -> None:
    value = document()
    value["artifacts"][2] |= {"engine_min": low, "engine_below": below}
    assert parse(value).artifacts[2].engine_below == below


def test_a_version_of_many_parts_is_refused() -> None:
    refused(changed((*ARTIFACT, "engine_min"), "1" + ".1" * 50), (*ARTIFACT, "engine_min"))


def test_a_default_prompt_that_is_not_there_is_refused() -> None:
    refused(changed(("model", "default_prompt_name"), "other"), ("model", "default_prompt_name"))
    refused(changed(("model", "prompts"), {}), ("model", "default_prompt_name"))
    value = changed(("model", "prompts"), {})
    value["model"]["default_prompt_name"] = None
    assert parse(value).model.prompts == {}


@pytest.mark.parametrize("number", ["-0", "-0.0", "-0e5"])
def test_negative_zero_is_zero(number: str) -> None:
    data = json.dumps(changed((*QUALITY, "max_abs_diff"), "HERE")).replace('"HERE"', number).encode()
    assert Manifest.parse(data).artifacts[2].quality.max_abs_diff == 0.0
    assert Manifest.parse(json.dumps(changed((*FILE, "size"), "S")).replace('"S"', "-0").encode())
    refused(json.dumps(changed((*FILE, "size"), "S")).replace('"S"', "-0.0").encode(), (*FILE, "size"))


def test_two_artifacts_of_one_id_are_refused() -> None:
    error = refused(changed((*ARTIFACT, "id"), "onnx-fp32"), "artifacts[].id")
    assert "'onnx-fp32' occurs twice" in error.reason


# --- Not JSON --------------------------------------------------------------------------------------------------------

DATA = json.dumps(document()).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not valid JSON"),
        (DATA[:-1], "is not valid JSON"),
        (DATA + b"}", "extra data"),
        (b"[]", "not an object"),
        (DATA.replace(b"BertModel", b"B\xffrtModel"), "is not valid JSON"),
        (DATA.replace(b'"size": 1234', b'"size": 1234, "size": 1234', 1), "the key 'size' occurs twice"),
        (DATA[:-1] + b', "added": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not valid JSON"),
        (DATA[:-1] + b', "added": NaN}', "NaN is not a JSON number"),
        (DATA[:-1] + b', "added": 1' + b"0" * 5000 + b"}", "is not valid JSON"),
    ],
    ids=["empty", "cut", "more", "array", "not UTF-8", "a key twice", "deep", "NaN", "a huge integer"],
)
def test_what_the_json_reader_refuses_is_no_manifest(data: bytes, reason: str) -> None:
    """The JSON reader's own tests have the other cases: `tests.runtime.bundle.test_json_reader`."""
    assert reason in refused(data).reason


@pytest.mark.parametrize("place", [(*ARTIFACT, "devices", 0), (*ARTIFACT, "id"), ("model",), ("added",)], ids=text)
def test_nesting_about_as_deep_as_the_stack_is_refused_or_ignored(place: Place) -> None:
    data = json.dumps(changed(place, "HERE"))
    outcomes = set()
    for depth in range(sys.getrecursionlimit() // 2, sys.getrecursionlimit() + 50):
        try:
            Manifest.parse(data.replace('"HERE"', "[" * depth + "]" * depth).encode())
            outcomes.add("ignored")
        except ManifestError:
            outcomes.add("refused")
    assert outcomes == ({"ignored", "refused"} if place == ("added",) else {"refused"})


def test_more_than_a_mebibyte_is_refused() -> None:
    assert str(MAX_BYTES) in refused(json.dumps(document()).encode().ljust(MAX_BYTES + 1)).reason


@pytest.mark.parametrize("share", range(50))
def test_a_truncated_manifest_is_refused(share: int) -> None:
    data = parse(document()).to_json()
    refused(data[: (len(data) - 2) * share // 49])
    refused(data[:-1], ("checksum",))


# --- Files -----------------------------------------------------------------------------------------------------------


def _nothing(_root: Path) -> None:
    """Leave the folder empty."""


def _folder(root: Path) -> None:
    (root / MANIFEST_NAME).mkdir()


def _dangling_link(root: Path) -> None:
    (root / MANIFEST_NAME).symlink_to(root / "nowhere")


@pytest.mark.parametrize("prepare", [_nothing, _folder, _dangling_link])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    prepare(tmp_path)
    with pytest.raises(ManifestError, match=r"firstvec\.json: cannot be read \(.+\); rebuild") as caught:
        Manifest.read(tmp_path)
    assert caught.value.path == str(tmp_path / MANIFEST_NAME)


def test_a_link_in_place_of_a_manifest_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / MANIFEST_NAME).rename(tiny_bundle.parent / "elsewhere.json")
    (tiny_bundle / MANIFEST_NAME).symlink_to(tiny_bundle.parent / "elsewhere.json")
    with pytest.raises(ManifestError, match="it is a symbolic link"):
        Manifest.read(tiny_bundle)


def test_a_pipe_in_place_of_a_manifest_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_NAME)
    with pytest.raises(ManifestError, match="it is not a regular file"):
        Manifest.read(tmp_path)


def test_a_bundle_folder_that_is_missing_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "missing", tmp_path / "file", "null\0"):
        with pytest.raises(ManifestError, match="cannot be read"):
            Manifest.read(root)


def test_a_manifest_on_disk_that_is_too_large_or_damaged_names_the_file(tmp_path: Path) -> None:
    for data in (b" " * (MAX_BYTES + 1), b"{}", json.dumps(document()).encode()[:-1]):
        (tmp_path / MANIFEST_NAME).write_bytes(data)
        with pytest.raises(ManifestError) as caught:
            Manifest.read(str(tmp_path))
        assert caught.value.path.startswith(str(tmp_path / MANIFEST_NAME))


# --- Any damage ------------------------------------------------------------------------------------------------------

PLACES = [place for place, _ in (*leaves(document()), *containers(document())) if place]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**310)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["cpu", "onnx", "1.0", "avx2", "tokenizer.json", "../x", SHA]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["replace", "delete", "duplicate", "swap"]), JSON),
    min_size=1,
    max_size=4,
)


def _mutate(value: Any, place: Place, operation: str, new: Any) -> None:
    try:
        parent = value_at(value, place[:-1])
        key: Any = place[-1]
        if operation == "replace":
            parent[key] = new
        elif operation == "delete":
            del parent[key]
        elif operation == "duplicate" and isinstance(parent, list):
            parent.append(parent[key])
        elif operation == "swap" and isinstance(parent, dict):
            # Two values change places.
            other = min(parent)
            parent[key], parent[other] = parent[other], parent[key]
    except (KeyError, IndexError, TypeError, ValueError):
        # An earlier mutation took the place away.
        return


@settings(max_examples=200, deadline=None)
@given(MUTATIONS)
def test_any_mutation_parses_and_round_trips_or_is_a_manifest_error(mutations: list[tuple[Place, str, Any]]) -> None:
    value = document()
    for place, operation, new in mutations:
        _mutate(value, place, operation, new)
    try:
        manifest = parse(value)
    except ManifestError:
        return
    assert Manifest.parse(manifest.to_json(), manifest.path) == manifest


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(json.dumps(document())) - 1), st.binary(max_size=4), st.integers(0, 8))
def test_any_damage_to_the_bytes_parses_or_is_a_manifest_error(position: int, new: bytes, gone: int) -> None:
    data = json.dumps(document()).encode()
    try:
        manifest = Manifest.parse(data[:position] + new + data[position + gone :])
    except ManifestError:
        return
    assert Manifest.parse(manifest.to_json()) == manifest
