"""Texts, and why a row has none."""

from __future__ import annotations

import pyarrow as pa
import pytest

from firstvec.bulk.rows import MAX_CHARACTERS, Problem, Rows, TextList, values_of
from firstvec.errors import InputError


def collect(values: object, first: int = 0) -> TextList:
    found = TextList(first)
    for value in values:  # type: ignore[attr-defined]
        found.add(value)
    return found


def test_texts_and_problems() -> None:
    found = collect(["one", None, b"\xc3\xa9", b"\xff", 5, "\ud800", Problem("is odd"), ""], first=10)
    assert found.texts == ["one", None, "é", None, None, None, None, ""]
    assert [row for row, _ in found.bad] == [11, 13, 14, 15, 16]
    reasons = [reason for _, reason in found.bad]
    assert reasons[0] == "is null"
    assert "not UTF-8 (byte 0" in reasons[1]
    assert reasons[2] == "is int, and no text"
    assert "not Unicode" in reasons[3]
    assert reasons[4] == "is odd"


def test_a_very_long_text_is_cut() -> None:
    found = collect(["a" * MAX_CHARACTERS, "b" * (MAX_CHARACTERS + 1)])
    assert [len(text or "") for text in found.texts] == [MAX_CHARACTERS, MAX_CHARACTERS]
    assert found.cut == 1


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_columns_of_texts(kind: pa.DataType) -> None:
    column = pa.array(["one", None, "drei"]).cast(pa.string()).cast(kind)
    assert collect(values_of(column)).texts == ["one", None, "drei"]


def test_strings_that_are_no_utf_8_are_bad_rows() -> None:
    column = pa.StringArray.from_buffers(3, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb"))
    found = collect(values_of(column))
    assert found.texts == ["a", None, "b"]


def test_other_columns_are_refused() -> None:
    with pytest.raises(InputError, match="is int64, and no text: choose another --text-column"):
        values_of(pa.array([1]))


def test_the_digest_tells_rows_apart() -> None:
    def digest(*texts: str | None) -> str:
        return Rows(number=0, source=0, first=0, texts=[*texts], bad=[], cut=0, table=None, position=0).digest()

    digests = [digest(*each) for each in (("ab", "c"), ("a", "bc"), ("abc",), ("ab", "c", None), ("ab", "c", ""))]
    assert len({*digests}) == 5
