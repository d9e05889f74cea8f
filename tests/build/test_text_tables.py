"""The parts of tokenizer tables that several families share."""

from __future__ import annotations

import numpy as np

from firstvec_build.text_tables import CODE_POINTS, PAGE, certain_code_points, join_arrays, list_strings, make_pages


def test_certain_code_points_are_old_ones_and_later_symbols() -> None:
    certain = {*certain_code_points()}
    assert {ord("a"), ord("é"), ord("漢"), 0x1F600} <= certain
    assert 0xD800 not in certain  # a surrogate
    assert 0x1E900 not in certain  # Adlam, a script of Unicode 9
    assert 0x10FFFF not in certain  # not assigned


def test_the_page_of_a_code_point_has_its_entry() -> None:
    entries = np.zeros(CODE_POINTS, np.uint8)
    entries[[5, 0x4E00, CODE_POINTS - 1]] = 1, 2, 3
    pages, characters = make_pages(entries)
    assert len(pages) == CODE_POINTS // PAGE
    assert len(characters) == 4  # the empty page, and one for each entry
    assert (characters[pages].ravel() == entries).all()


def test_strings_and_arrays_lie_as_the_format_says() -> None:
    assert list_strings(["ab", "é"]) == b"\x02ab\x02\xc3\xa9"
    data = join_arrays(10, b"one", b"two")
    assert data[64:67] == b"one"
    assert data[128:131] == b"two"
    assert len(data) == 131
