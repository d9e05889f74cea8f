"""What the commands print: aligned columns, nothing cut off, nothing that a terminal would obey."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstvec.bundle.manifest import Manifest
from firstvec.commands import output
from firstvec.commands.output import print_artifacts, print_json, print_table, print_text

Printed = Callable[[], str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return lambda: capsys.readouterr().out


def test_columns_are_aligned_to_the_left_and_to_the_right(printed: Printed) -> None:
    print_table([["name", "MB", "folder"], ["a", "1.0", "/x"], ["long name", "100.0", "/y z"]], right=(1,), indent=" ")
    assert printed() == " name          MB  folder\n a            1.0  /x\n long name  100.0  /y z\n"


def test_a_cell_has_several_lines(printed: Printed) -> None:
    print_table([["from", "/a\n/b"], ["x\ny", "z"], ["end", ""]])
    assert printed() == "from  /a\n      /b\nx     z\ny\nend\n"


def test_no_rows_print_nothing(printed: Printed) -> None:
    print_table([])
    assert printed() == ""


def test_control_characters_are_spelled_out_and_count_as_they_are_shown(printed: Printed) -> None:
    print_table([["\x1b[31m", "a"], ["b", "\x07\u202e\u2028"]])
    assert printed() == "\\x1b[31m  a\nb         \\x07\\u202e\\u2028\n"
    print_text("\x9b2J\nnext")
    assert printed() == "\\x9b2J\nnext\n"


def test_json_has_no_control_characters_either(printed: Printed) -> None:
    print_json({"\x1b": "\x9b\u202e"})
    assert printed().isascii()


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9), st.text(max_size=60)), min_size=1, max_size=4))
def test_nothing_is_cut_off(rows: list[tuple[str, str, str]]) -> None:
    """On a pipe and on a terminal of 40 columns, every word of every cell is there."""
    for width in (10**9, 40):
        lines: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(output, "_terminal_width", lambda width=width: width)
            patch.setattr(output.sys, "stdout", _Lines(lines))
            print_table(rows)
        text = "".join(lines)
        assert all(each.isprintable() for each in text.split("\n"))
        for row in rows:
            for cell in row:
                assert all(word in text for word in output.printable(cell).split())


class _Lines:
    """A stream that keeps what is written."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


LONG = "one two three four five six seven eight nine ten eleven twelve"


def test_words_are_wrapped_within_the_last_column_of_a_terminal(
    printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_terminal_width", lambda: 40)
    print_table([["name", LONG], ["x", "short\n" + LONG]], indent="  ")
    lines = printed().splitlines()
    assert max(map(len, lines)) <= 40
    assert [line[:8] for line in lines if line[8:].startswith("one")] == ["  name  ", "        "]
    assert all(line[:8].strip() in ("", "name", "x") for line in lines)
    assert " ".join(line[8:] for line in lines) == f"{LONG} short {LONG}"


def test_a_path_is_never_broken(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_terminal_width", lambda: 40)
    path = "/a-long/folder" * 6
    print_table([["name", f"in {path}"]])
    assert printed() == f"name  in\n      {path}\n"


def test_a_narrow_terminal_gets_whole_lines(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_terminal_width", lambda: 20)
    print_table([["name", LONG]])
    assert printed() == f"name  {LONG}\n"


def test_numbers_on_the_right_are_not_wrapped(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_terminal_width", lambda: 40)
    print_table([["name", "load ms"], ["x" * 30, "1 2 3 4 5 6 7"]], right=(1,))
    assert printed() == f"{'name':32}      load ms\n{'x' * 30}  1 2 3 4 5 6 7\n"


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 77, 0, 0))
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(output.sys, "stdout", terminal)
        assert output._terminal_width() == 77
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        assert output._terminal_width() > 10**6


@pytest.mark.parametrize("close", [False, True])
def test_a_file_has_no_width(close: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w") as file:
        if close:
            file.close()
        monkeypatch.setattr(output.sys, "stdout", file)
        assert output._terminal_width() > 10**6


def test_artifacts_have_a_row_each(tiny_built: Path, printed: Printed) -> None:
    manifest = Manifest.read(tiny_built)
    print_artifacts(manifest)
    title, head, *rows = printed().splitlines()
    assert title == f"{manifest.model.name}  ({tiny_built})"
    assert head.split() == ["artifact", "precision", "ISA", "MB", "cosine", "worst", "max", "|Δ|"]
    assert [row.split()[0] for row in rows] == [artifact.id for artifact in manifest.artifacts]
    assert {len(row) for row in (head, *rows)} == {len(head)}
    for row, artifact in zip(rows, manifest.artifacts, strict=True):
        assert row.split()[1:4] == [artifact.precision, artifact.isa or "any", f"{artifact.size / 1e6:.1f}"]


def test_artifacts_have_their_times(tiny_built: Path, printed: Printed) -> None:
    manifest = Manifest.read(tiny_built)
    first, second = manifest.artifacts[:2]
    print_artifacts(manifest, {first.id: (12.4, 34.6), second.id: None})
    rows = {row.split()[0]: row for row in printed().splitlines()[2:]}
    assert rows[first.id].split()[-2:] == ["12", "35"]
    assert rows[second.id].endswith("–         not here")
