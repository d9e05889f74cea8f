"""The JSON reader accepts what ``json.loads`` accepts, less what the format forbids. Every error names its place."""

from __future__ import annotations

import base64
import json
import math
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstvec.bundle import json_reader
from firstvec.bundle.json_reader import CheckedObject, is_below, is_number, parse_object, read_regular_file
from firstvec.errors import ManifestError
from tests.conftest import Fresh
from tests.manifests import document

FILE = "/b/x.json"
DOCUMENT = json.dumps(document()).encode()


def refused(data: bytes | str, place: str = "") -> ManifestError:
    """Return the error that a document raises, which must name the file and the place."""
    with pytest.raises(ManifestError) as caught:
        parse_object(data.encode() if isinstance(data, str) else data, FILE)
    assert caught.value.path == (f"{FILE}: {place}" if place else FILE)
    assert str(caught.value).startswith(f"{caught.value.path}: {caught.value.reason}; ")
    return caught.value


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [(0, b""), (3, b"abc"), (6, b"abcdef"), (1 << 20, b"abcdef")])
def test_at_most_the_given_size_is_read(tmp_path: Path, size: int, expected: bytes) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    assert read_regular_file(str(tmp_path / "file"), size) == expected


@pytest.mark.parametrize("may_be_link", [False, True])
def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path, may_be_link: bool) -> None:
    with pytest.raises(FileNotFoundError):
        read_regular_file(str(tmp_path / "file"), 9, may_be_link=may_be_link)


def test_a_symbolic_link_is_refused_unless_the_caller_accepts_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="it is a symbolic link"):
        read_regular_file(str(tmp_path / "link"), 9)
    assert read_regular_file(str(tmp_path / "link"), 9, may_be_link=True) == b"abc"


def test_a_link_that_appears_after_the_look_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    monkeypatch.setattr(os.path, "islink", lambda _path: False)
    with pytest.raises(OSError, match="symbolic links"):  # O_NOFOLLOW
        read_regular_file(str(tmp_path / "link"), 9)


@pytest.mark.parametrize("may_be_link", [False, True])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_pipe_or_a_folder_is_refused_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], may_be_link: bool
) -> None:
    make(tmp_path / "x")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"it is not a regular file|Is a directory"):
        read_regular_file(str(tmp_path / "x"), 9, may_be_link=may_be_link)
    assert os.listdir("/proc/self/fd") == before


# --- Documents that are accepted -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(value=JSON, is_ascii=st.booleans(), indent=st.none() | st.integers(0, 3), around=st.text(" \t\n\r", max_size=3))
def test_a_valid_document_gives_what_json_gives(value: Any, is_ascii: bool, indent: int | None, around: str) -> None:
    text = around + json.dumps(value, ensure_ascii=is_ascii, indent=indent) + around
    loaded = json_reader._load(text)
    assert loaded == json.loads(text) == value
    assert repr(loaded) == repr(json.loads(text))  # 1, 1.0 and True are equal


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('{}[]",:\\ \t\n\rtruefalsn0123456789.-+eEuN\ufeff\xa0\0'), max_size=12))
def test_a_text_that_json_refuses_is_refused_and_no_other(text: str) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        expected = json.loads(text, parse_constant=refuse, object_pairs_hook=refuse_twins)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - the message is the scanner's
            json_reader._load(text)
        return
    assert json_reader._load(text) == expected


def test_reading_a_manifest_imports_neither_json_nor_re(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import sys
if len(sys.argv) > 1:
    from firstvec.bundle.manifest import Manifest
    Manifest.read(sys.argv[1])
print(*sys.modules)
"""
    # site may import re, for example for the .pth file of an editable installation.
    at_start, afterwards = (set(fresh(code, *arguments).stdout.split()) for arguments in ([], [tiny_built]))
    added = afterwards - at_start
    assert {"firstvec.bundle.manifest", "_json"} <= added
    assert added.isdisjoint(("re", "json", "json.decoder", "enum", "typing", "dataclasses"))


def test_an_escape_that_only_looks_like_a_surrogate_and_a_pair_of_surrogates_are_accepted() -> None:
    assert parse_object(rb'{"a": "\\ud800", "b": "\ud83d\ude00"}', FILE).value == {"a": "\\ud800", "b": "😀"}


# --- Documents that are refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[], [document()], "x", 1, 1.5, True, None])
def test_a_document_whose_top_is_no_object_is_refused(value: object) -> None:
    assert "not an object" in refused(json.dumps(value)).reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a value is expected at character 0"),
        ("  x", "a value is expected at character 2"),
        ("{}  x", "extra data at character 2"),
        ("\n{}{}", "extra data at character 3"),
    ],
)
def test_an_error_has_its_place_in_the_document_as_it_was_given(text: str, reason: str) -> None:
    assert refused(text).reason == f"is not valid JSON ({reason})"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('{"format": ', '{"format": "firstvec-bundle", "format": ', "format"),
        ('"size": 1234', '"size": 1234, "size": 1234', "size"),
        ('"query": ""', '"query": "", "query": "x"', "query"),
    ],
)
def test_a_key_that_occurs_twice_is_refused_and_named(old: str, new: str, key: str) -> None:
    data = DOCUMENT.decode()
    assert old in data
    assert f"the key {key!r} occurs twice" in refused(data.replace(old, new, 1)).reason


def test_a_key_that_occurs_twice_among_very_many_is_found_at_once() -> None:
    data = "{" + ",".join(f'"{number}":0' for number in range(90_000)) + ',"89999":0}'
    began = time.process_time()
    assert "'89999' occurs twice" in refused(data).reason
    assert time.process_time() - began < 5  # each compared with each other takes minutes


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_that_is_no_json_number_is_refused(constant: str) -> None:
    assert f"{constant} is not a JSON number" in refused(f'{{"a": [{constant}]}}').reason


def test_an_integer_that_python_does_not_convert_is_refused() -> None:
    refused(f'{{"a": 1{"0" * 5000}}}')


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        DOCUMENT[:-1] + b', "added": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["open", "closed", "objects", "in an unknown key"],
)
def test_deep_nesting_is_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize(
    "data",
    [
        DOCUMENT.replace(b"BertModel", b"B\xffrtModel"),
        DOCUMENT.replace(b"BertModel", "Bért".encode("latin-1")),
        DOCUMENT.replace(b"BertModel", b"B\xed\xa0\x80"),
        DOCUMENT.replace(b"BertModel", b"B\xc0\xaf"),
        DOCUMENT.decode().encode("utf-16-le"),
        DOCUMENT.decode().encode("utf-16"),
        DOCUMENT.decode().encode("utf-32-be"),
        DOCUMENT.decode().encode("utf-8-sig"),
    ],
    ids=["ff", "latin-1", "surrogate", "overlong", "utf-16-le", "utf-16 with BOM", "utf-32-be", "utf-8 with BOM"],
)
def test_bytes_that_are_not_plain_utf_8_are_refused(data: bytes) -> None:
    assert "is not valid JSON" in refused(data).reason


@pytest.mark.parametrize("data", [b"", b" ", b"\0", b"\0" * 4096, b"{", b"<html>", b"version https://git-lfs\n"])
def test_bytes_that_are_no_json_at_all_are_refused(data: bytes) -> None:
    assert "is not valid JSON" in refused(data).reason


@pytest.mark.parametrize("tail", [b"}", b"{}", b"\0", b",", b"x"])
def test_a_document_with_something_behind_it_is_refused(tail: bytes) -> None:
    assert "is not valid JSON" in refused(DOCUMENT + tail).reason


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": "\ud800"}, "a"),
        ({"a": {"b": "x\udfff"}}, "a.b"),
        ({"a": [1, ["\ud800"]]}, "a[1][0]"),
        ({"a": {"b\ud800": 1}}, "a"),
        ({"b\ud800": 1}, ""),
        ({"x\n": "\ud800"}, "x\\n"),
    ],
    ids=ascii,
)
def test_a_lone_surrogate_is_refused_wherever_it_is(value: object, place: str) -> None:
    error = refused(json.dumps(value), place)
    assert "lone surrogate" in error.reason
    assert str(error).isprintable()


def test_a_raw_lone_surrogate_is_no_utf_8() -> None:
    refused('{"a": "\ud800"}'.encode("utf-8", "surrogatepass"))


# --- Values ----------------------------------------------------------------------------------------------------------


def one(value: object) -> CheckedObject:
    """Return an object whose only key is ``key``."""
    return CheckedObject({"key": value}, FILE)


def read(name: str, *arguments: Any, **options: Any) -> Callable[[object], Any]:
    """Return a function that reads ``key`` with that method of `CheckedObject`."""
    return lambda value: getattr(one(value), name)("key", *arguments, **options)


def reason(reading: Callable[[object], Any], value: object, place: str = "key") -> str:
    """Return why a value is refused. The error must name its place."""
    with pytest.raises(ManifestError) as caught:
        reading(value)
    assert caught.value.path == f"{FILE}: {place}"
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    return caught.value.reason


METHODS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("text", "version", "digest", "boolean", "strings", "numbers", "floats", "base64", "texts"), ()),
    **dict.fromkeys(("child", "children"), ()),
    **{"literal": ("x",), "integer": (0, 9), "integers": (0, 9), "number": (0.0, 9.0)},
}


def test_every_method_that_reads_a_key_is_here() -> None:
    others = {"error", "optional", "place"}
    assert {name for name in vars(CheckedObject) if name[0] != "_"} == {*METHODS, *others}


@pytest.mark.parametrize("name", METHODS)
def test_a_missing_key_and_null_are_refused(name: str) -> None:
    with pytest.raises(ManifestError, match="key: is missing; ") as caught:
        getattr(CheckedObject({}, FILE), name)("key", *METHODS[name])
    assert caught.value.path == f"{FILE}: key"
    assert reason(read(name, *METHODS[name]), None).startswith("is null, not ")


@pytest.mark.parametrize(
    ("reading", "value", "expected"),
    [
        (read("text"), "größe/日本\u3000😀\u200b", "größe/日本\u3000😀\u200b"),
        (read("text"), "x" * 10_000, "x" * 10_000),
        (read("version"), "1", "1"),
        (read("version"), "1.23.0.04", "1.23.0.04"),
        (read("digest"), "0123456789abcdef" * 4, "0123456789abcdef" * 4),
        (read("boolean"), False, False),
        (read("integer", -3, 9), -3, -3),
        (read("integer", -3, 9), 9, 9),
        (read("integers", 0, 9), [], ()),
        (read("integers", 0, 9), [0, 9], (0, 9)),
        (read("strings"), [], ()),
        (read("strings", at_least=1), ["a"], ("a",)),
        (read("number", 0.0, 9.0), 9, 9.0),
        (read("number", -1.0, 9.0), -0.0, -0.0),
        (read("number", -math.inf, math.inf), 1e308, 1e308),
        (read("numbers"), {"a": 1, "b": 0.5}, {"a": 1.0, "b": 0.5}),
        (read("texts"), {"a": "", "b": "x\n\0"}, {"a": "", "b": "x\n\0"}),
        (read("base64"), "", b""),
        (read("base64"), "AAE=", b"\0\1"),
        (
            read("floats"),
            base64.b64encode(struct.pack("<3f", 1, -0.5, 1e30)).decode(),
            [1, -0.5, 1.0000000150474662e30],
        ),
        (lambda value: one(value).literal("key", "x"), "x", None),
        (lambda value: one(value).optional("key", lambda key: key.upper()), None, None),
        (lambda value: one(value).optional("other", lambda key: key.upper()), 1, None),
        (lambda value: one(value).optional("key", lambda key: key.upper()), 0, "KEY"),
    ],
)
def test_a_valid_value_is_returned(reading: Callable[[object], Any], value: object, expected: object) -> None:
    found = reading(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("reading", "value", "expected", "place"),
    [
        (read("text"), "", "is empty", "key"),
        (read("text"), "x" * 10_001, "is longer than 10000 characters", "key"),
        (read("text"), "a\x1b[2J", "is 'a\\x1b[2J', which has control characters", "key"),
        (read("text"), "a\x9b", "is 'a\\x9b', which has control characters", "key"),
        (read("text"), 1, "is an integer, not a string", "key"),
        (read("literal", "x"), "y" * 200, f"is {'y' * 80!r}, not 'x'", "key"),
        (read("version"), "1.23rc1", "'1.23rc1' is not a version like 1.23.0", "key"),
        (read("version"), "1" + ".1" * 50, "is not a version", "key"),
        (read("version"), "١.٢", "is not a version", "key"),
        (read("digest"), "0" * 63, "is not a SHA-256 of 64 lower-case hexadecimal digits", "key"),
        (read("digest"), "A" * 64, "is not a SHA-256", "key"),
        (read("boolean"), 1, "is an integer, not true or false", "key"),
        (read("integer", 0, 9), True, "is true or false, not an integer", "key"),
        (read("integer", 0, 9), 10, "is not between 0 and 9", "key"),
        (read("integer", 0, 9), -(10**400), "is not between 0 and 9", "key"),
        (read("integers", 0, 9), [0, 10], "is not between 0 and 9", "key[1]"),
        (read("integers", 0, 9), [0, True], "is true or false, not an integer", "key[1]"),
        (read("strings"), ["a", 1], "is an integer, not a string", "key[1]"),
        (read("strings"), ["a", ""], "is empty", "key[1]"),
        (read("strings", at_least=1), [], "is empty", "key"),
        (read("number", 0.0, 9.0), 9.5, "is 9.5, not a finite number between 0 and 9", "key"),
        (read("number", 0.0, math.inf), math.inf, "is inf, not a finite number between 0 and inf", "key"),
        (read("number", 0.0, 9.0), 10**400, "is an integer, not a number", "key"),
        (read("number", 0.0, 9.0), True, "is true or false, not a number", "key"),
        (read("numbers"), {"a": 1, "b": "x"}, "is a string, not a number", "key.b"),
        (read("numbers"), {"a\x1b": 1}, "holds the key 'a\\x1b', which is not a name", "key"),
        (read("numbers"), {"x" * 201: 1}, f"holds the key {'x' * 80!r}, which is not a name", "key"),
        (read("texts"), {"a": 1}, "is an integer, not a string", "key.a"),
        (read("texts"), {"a\x1b": 1}, "is an integer, not a string", "key.a\\x1b"),
        (read("base64"), "AAE", "is not base64", "key"),
        (read("base64"), "A AE=", "is not base64", "key"),
        (read("base64"), "é", "is not base64", "key"),
        (read("base64"), "AAF=", "is not base64 as an encoder writes it", "key"),
        (read("floats"), "AAAA", "is not float32 numbers in base64", "key"),
        (read("floats"), "*", "is not base64", "key"),
        (read("floats"), base64.b64encode(struct.pack("<f", math.nan)).decode(), "that is not finite", "key"),
        (read("floats"), base64.b64encode(struct.pack("<f", -math.inf)).decode(), "that is not finite", "key"),
        (read("child"), [], "is an array, not an object", "key"),
        (read("children"), {}, "is an object, not an array", "key"),
        (read("children"), [{}, 1], "is an integer, not an object", "key[1]"),
        (read("children", at_least=1), [], "is empty", "key"),
    ],
    ids=repr,
)
def test_a_value_outside_its_bounds_is_refused_and_its_place_is_named(
    reading: Callable[[object], Any], value: object, expected: str, place: str
) -> None:
    assert expected in reason(reading, value, place)


def test_the_place_of_an_inner_object_is_the_way_that_leads_to_it() -> None:
    top = CheckedObject({"a": [{}, {"b": {"c": [{}]}}]}, FILE)
    inner = top.children("a")[1].child("b").children("c")[0]
    assert (top.place, inner.place, inner.file) == ("", "a[1].b.c[0]", FILE)
    assert inner.error("d", "is wrong").path == f"{FILE}: a[1].b.c[0].d"


# --- Versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "limit", "expected"),
    [
        ("1.9", "1.10", True),
        ("1.10", "1.9", False),
        ("1.23", "1.23.1", True),
        ("1.23", "1.23.0", False),
        ("2.0", "2", False),
        ("2", "2.0.0", False),
        ("0", "0.0.1", True),
        ("0", "0.0", False),
        ("9", "10", True),
        ("10", "9.9", False),
        ("3", "2.999", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, limit: str, expected: bool) -> None:
    assert is_below(version, limit) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((digits, True) for digits in ("0", "007", "1" * 9)),
        *((other, False) for other in ("1" * 10, "", "-1", "1.0", "١", "²", "1 ", "1_0")),
    ],
)
def test_a_number_is_a_short_run_of_ascii_digits(text: str, expected: bool) -> None:
    assert is_number(text) is expected


@pytest.mark.parametrize("text", ["{", '{"model": ', "[1,2", '{"a" 1}'])
def test_a_document_that_is_cut_off_is_refused_where_nobody_has_imported_json(text: str, fresh: Fresh) -> None:
    done = fresh(
        "import sys\nfrom firstvec.bundle.json_reader import parse_object\nfrom firstvec.errors import ManifestError\n"
        "assert 'json' not in sys.modules\n"
        "try:\n    parse_object(sys.argv[1].encode(), 'a.json')\n"
        "except ManifestError as error:\n    print(error)",
        text,
    )
    assert "a.json" in done.stdout
    assert "JSON" in done.stdout
