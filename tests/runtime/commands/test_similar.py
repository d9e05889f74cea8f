"""`firstvec similar`: the lines of files and of stdin, ranked by their similarity to a query."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.conftest import Fresh, edit_manifest
from tests.runtime.commands.conftest import PROGRAM, Shell, on_a_terminal

NOTES = """\
To change a forgotten password, open the settings.

The canteen opens at noon.\r
\t
Invoices are sent by post.
Your login can be restored by e-mail."""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of four lines and two empty ones. It lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "notes.txt"
    path.write_text(NOTES, "utf-8", newline="")
    return path


def ranked(bundle: Path, query: str, texts: list[str]) -> list[tuple[float, str]]:
    """What numpy makes of the provider's vectors: cosines and texts, the best first."""
    provider = OptimizedEmbeddingLoader(str(bundle)).get_provider()
    vectors = provider.encode_document(texts)
    target = provider.encode_query(query)
    cosines = vectors @ target / np.linalg.norm(vectors, axis=1) / np.linalg.norm(target)
    return [(float(cosines[index]), texts[index]) for index in np.argsort(-cosines, kind="stable")]


def test_the_lines_that_mean_the_same_come_first(bundle: Path, notes: Path, firstvec: Fresh) -> None:
    done = firstvec("similar", "how do I reset my password?", "notes.txt")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    scores = [float(line[:5]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert lines[0] == f"{scores[0]:.3f}  notes.txt:1  To change a forgotten password, open the settings."
    assert lines[1] == f"{scores[1]:.3f}  notes.txt:6  Your login can be restored by e-mail."
    assert scores[0] > scores[1] > 0.3 > scores[2]
    assert {line.split("  ")[1] for line in lines[2:]} == {"notes.txt:3", "notes.txt:5"}
    assert "\r" not in done.stdout


@pytest.mark.native
def test_json_has_the_same_lines(tiny_built: Path, notes: Path, firstvec: Fresh) -> None:
    query = 'the "query"'
    done = firstvec("similar", query, notes, "--model", tiny_built, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["model"], found["artifact"], found["query"]) == ("tiny-bert", "native-fp32", query)
    texts = [line for line in re.split(r"\r?\n", NOTES) if line.strip()]
    expected = ranked(tiny_built, query, texts)
    assert [line["text"] for line in found["lines"]] == [text for _, text in expected]
    np.testing.assert_allclose(
        [line["score"] for line in found["lines"]], [cosine for cosine, _ in expected], atol=1e-5
    )
    assert {line["file"] for line in found["lines"]} == {str(notes)}
    assert sorted(line["line"] for line in found["lines"]) == [1, 3, 5, 6]


def test_many_lines_are_ranked_as_one(tiny_built: Path, notes: Path, firstvec: Fresh) -> None:
    """More lines than a batch has, in two files and stdin."""
    texts = [f"{number} of the {word}" for number in range(900) for word in ("tree", "house", "river")]
    Path("a.txt").write_text("\n".join(texts[:1500]))
    Path("b.txt").write_text("\n".join(texts[1500:2000]) + "\n")
    model = ["-m", tiny_built, "--json", "-k", 25]
    done = firstvec("similar", *model, "12 houses", "a.txt", "-", "b.txt", stdin="\n".join(texts[2000:]))
    lines = json.loads(done.stdout)["lines"]
    expected = ranked(tiny_built, "12 houses", texts)[:25]
    np.testing.assert_allclose([line["score"] for line in lines], [cosine for cosine, _ in expected], atol=1e-5)
    places = {text: ("a.txt", place + 1) for place, text in enumerate(texts[:1500])}
    places |= {text: ("b.txt", place + 1) for place, text in enumerate(texts[1500:2000])}
    places |= {text: ("-", place + 1) for place, text in enumerate(texts[2000:])}
    assert all(places[line["text"]] == (line["file"], line["line"]) for line in lines)


def test_equal_lines_keep_their_order(tiny_built: Path, notes: Path, firstvec: Fresh) -> None:
    Path("same.txt").write_text("same\nother words\n" * 4)
    done = firstvec("similar", "-m", tiny_built, "same", "same.txt", "notes.txt", "same.txt", "-k", 5)
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        *("same.txt:1", "same.txt:3", "same.txt:5", "same.txt:7", "same.txt:1")
    ]


@pytest.mark.parametrize(("top", "count"), [([], 10), (["-k", "3"], 3), (["--top=99"], 12)])
def test_the_best_lines_are_printed(top: list[str], count: int, tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("similar", "-m", tiny_built, "query", *top, stdin="".join(f"line {n}\n" for n in range(12)))
    assert len(done.stdout.splitlines()) == count


@pytest.mark.parametrize("arguments", [[], ["-"], ["--", "-"]])
def test_stdin_is_read_without_a_file(arguments: list[str], tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("similar", "-m", tiny_built, "query", *arguments, stdin="\none\ntwo words\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(line.split("  ", 1)[1] for line in done.stdout.splitlines()) == ["-:2  one", "-:3  two words"]


def test_a_pipe_is_a_file(tiny_built: Path, shell: Shell) -> None:
    done = shell("$F similar -m $1 query <(echo one) <(echo two) -k 5", tiny_built)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


@pytest.fixture
def prompted(tiny_bundle: Path) -> Path:
    """A bundle whose model has prompts for queries and for documents."""
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts={"query": "q: ", "document": "d: "}))
    return tiny_bundle


def test_the_query_and_the_lines_get_the_prompts_of_the_model(prompted: Path, firstvec: Fresh) -> None:
    done = firstvec("similar", "-m", prompted, "text", "--json", stdin="text\nother\n")
    lines = {line["text"]: line["score"] for line in json.loads(done.stdout)["lines"]}
    plain = OptimizedEmbeddingLoader(str(prompted)).get_provider().encode(["q: text", "d: text", "d: other"])
    assert lines["text"] == pytest.approx(float(plain[0] @ plain[1]), abs=1e-5)
    assert lines["other"] == pytest.approx(float(plain[0] @ plain[2]), abs=1e-5)
    assert lines["text"] < 0.9999


@pytest.fixture(scope="module")
def not_normalized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose vectors have other lengths than 1."""
    from firstvec_build.pipeline import build
    from tests.tiny import save_bert

    model = save_bert(tmp_path_factory.mktemp("models") / "other-lengths", normalize=False)
    return Path(build(str(model), tmp_path_factory.mktemp("bundles"), only=["onnx-fp32"]).manifest.root)


def test_the_score_is_the_cosine_of_any_vectors(not_normalized: Path, firstvec: Fresh) -> None:
    texts = ["one", "two words", "three short words", "a line that is a little longer than the other lines are"]
    done = firstvec("similar", "-m", not_normalized, "words", "--json", stdin="\n".join(texts))
    lines = json.loads(done.stdout)["lines"]
    expected = ranked(not_normalized, "words", texts)
    assert [line["text"] for line in lines] == [text for _, text in expected]
    np.testing.assert_allclose([line["score"] for line in lines], [cosine for cosine, _ in expected], atol=1e-5)
    assert np.linalg.norm(OptimizedEmbeddingLoader(str(not_normalized)).get_provider().embed_query("words")) > 1.5


@pytest.mark.native
@pytest.mark.parametrize(
    ("options", "artifact"), [(["-s", "quantized"], "native-int8"), (["--artifact", "onnx-fp32"], "onnx-fp32")]
)
def test_the_options_of_the_choice_are_those_of_encode(
    options: list[str], artifact: str, tiny_built: Path, firstvec: Fresh
) -> None:
    done = firstvec("similar", "-m", tiny_built, *options, "query", "--json", stdin="one\n")
    assert json.loads(done.stdout)["artifact"] == artifact


# Lines


def test_a_byte_order_mark_is_no_text(tiny_built: Path, notes: Path, firstvec: Fresh) -> None:
    Path("marked.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbf\n")
    found = json.loads(firstvec("similar", "-m", tiny_built, "one", "marked.txt", "--json").stdout)["lines"]
    assert found[0]["text"] == "one"


def test_of_a_very_long_line_the_beginning_is_read(tiny_built: Path, notes: Path, firstvec: Fresh) -> None:
    """The cut goes through a character of two bytes, and the numbers of the lines stay right."""
    Path("long.txt").write_text(f"x{'é' * 1_500_000}\nafter\nx{'é' * 600_000}", "utf-8")
    found = json.loads(firstvec("similar", "-m", tiny_built, "after", "long.txt", "--json").stdout)["lines"]
    assert {line["line"]: line["text"] for line in found} == {
        1: "x" + "é" * ((1 << 19) - 1),
        2: "after",
        3: "x" + "é" * ((1 << 19) - 1),
    }


def test_control_characters_of_a_line_do_not_reach_the_terminal(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("similar", "-m", tiny_built, "query", stdin="\x1b]0;owned\x07\tb\x9bc\n")
    assert done.stdout.endswith("-:1  \\x1b]0;owned\\x07\tb\\x9bc\n")


def test_a_line_holds_characters_that_end_lines_elsewhere(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("similar", "-m", tiny_built, "query", "--json", stdin="a\x0cb\u2028c\u0085d\n")
    assert [line["text"] for line in json.loads(done.stdout)["lines"]] == ["a\x0cb\u2028c\u0085d"]


MEMORY = """
import sys
from firstvec.commands.main import main
main(["similar", "-m", sys.argv[1], "a word", sys.argv[2], "-k", "3"])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.native
def test_memory_does_not_depend_on_the_size_of_the_files(tiny_built: Path, tmp_path: Path, fresh: Fresh) -> None:
    used = []
    for name, line, count in (
        ("small", "word " * 100, 2_100),
        ("many", "word " * 100, 20_000),
        ("long", "a" * 10**6, 60),
    ):
        (tmp_path / name).write_text(f"{line}\n" * count)
        used.append(int(fresh(MEMORY, tiny_built, tmp_path / name).stdout.splitlines()[-1]) / 1024)
    assert (tmp_path / "many").stat().st_size > 9e6
    assert max(used) < min(used) + 15, used


# Bad input


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], "one\n", "the query is missing or empty: firstvec similar QUERY FILE"),
        ([""], "one\n", "the query is missing or empty"),
        ([" \t"], "one\n", "the query is missing or empty"),
        (["query", "missing.txt"], "", "'missing.txt' cannot be read (No such file or directory)"),
        (["query", "notes.txt", "notes.txt/x"], "", "'notes.txt/x' cannot be read (Not a directory)"),
        (["query", "."], "", "'.' is a folder: name its files"),
        (["query", ""], "", "'' cannot be read (No such file or directory)"),
        (["query", "binary"], "", "'binary' is no text (byte 12 is zero). Text in UTF-16 must be converted first"),
        (
            ["query", "latin-1.txt"],
            "",
            "'latin-1.txt' is not UTF-8 (byte 9); convert it first, for example with iconv",
        ),
        (["query", "cut.txt"], "", "'cut.txt' is not UTF-8 (byte 5)"),
        (["query", "-"], b"one\n\xff", "stdin is not UTF-8 (byte 4)"),
        (["query", "empty"], "", "'empty': there is no line that is not empty"),
        (["query", "empty", "blank"], "", "'empty', 'blank': there is no line that is not empty"),
        (["query"], "", "stdin: there is no line that is not empty"),
        (["query", "-"], "\n \n", "'-': there is no line that is not empty"),
        (["query", "-", "notes.txt", "-"], "one\n", "stdin (-) is named twice: it can be read once"),
        (["notes.txt"], "one\n", "'notes.txt' is a file, and the first argument is the query"),
        (["notes.txt", "empty"], "", "firstvec similar QUERY notes.txt"),
        (["\udcff", "notes.txt"], "", "has a lone surrogate"),
    ],
    ids=str,
)
def test_bad_input_is_one_message(
    arguments: list[str], stdin: str | bytes, message: str, tiny_built: Path, notes: Path, firstvec: Fresh
) -> None:
    Path("binary").write_bytes(b"plain line\nx\0y")
    Path("latin-1.txt").write_bytes(b"one\nline \xfcber\n")
    Path("cut.txt").write_bytes(b"one\nx\xc3")
    Path("empty").touch()
    Path("blank").write_bytes(b"\n\r\n \t\n\n")
    done = firstvec("similar", "-m", tiny_built, *arguments, stdin=stdin)
    assert done.returncode == 1
    assert not done.stdout
    error = done.stderr.decode() if isinstance(done.stderr, bytes) else done.stderr
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["missing.txt"], ["."], []])
def test_files_are_checked_before_the_model_is_looked_for(
    arguments: list[str], notes: Path, firstvec: Fresh, shell: Shell
) -> None:
    done = shell("$F similar -m no/such query <&-") if not arguments else None
    done = done or firstvec("similar", "-m", "no/such", "query", *arguments)
    assert done.returncode == 1
    assert "no/such" not in done.stderr
    done = firstvec("similar", "-m", "no/such", "query", "notes.txt")
    assert "no bundle for model 'no/such' was found" in done.stderr


def test_the_name_of_a_file_is_a_query_behind_two_dashes(tiny_built: Path, notes: Path, shell: Shell) -> None:
    for query in ("notes.txt", "./notes.txt", "it's.txt"):
        Path("it's.txt").write_text("one\n")
        done = shell('$F similar -m $1 "$2" notes.txt', tiny_built, query)
        assert (done.returncode, done.stdout) == (1, "")
        way = done.stderr.splitlines()[-1].partition(": firstvec similar ")[2]
        assert way.startswith("-- ")
        assert shell(f"$F similar -m $1 {way} notes.txt", tiny_built).stdout.count("\n") == 4


@pytest.mark.parametrize("dash", ["", "-"])
def test_a_closed_stdin_has_no_text(dash: str, tiny_built: Path, shell: Shell) -> None:
    done = shell(f"$F similar -m $1 query {dash} <&-", tiny_built)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no text to search: name files, or pipe lines into stdin" in done.stderr


def test_forgotten_files_do_not_wait_at_a_terminal(tiny_built: Path) -> None:
    code, shown = on_a_terminal(["similar", "-m", tiny_built, "query"], b"")
    assert code == 1
    assert "error: there is no text to search" in shown


def test_a_dash_reads_what_is_typed_at_a_terminal(tiny_built: Path) -> None:
    code, shown = on_a_terminal(["similar", "-m", tiny_built, "query", "-"], b"one\ntwo words\n\x04")
    assert code == 0
    assert "-:2  two words" in shown


@pytest.mark.native
@pytest.mark.parametrize("waits", [True, False])
def test_ctrl_c_ends_it(waits: bool, tiny_built: Path, tmp_path: Path) -> None:
    """While it waits for lines, and while it computes."""
    (tmp_path / "lines").write_text("word " * 60 + "\n" if waits else ("word " * 60 + "\n") * 400_000)
    source = os.open(tmp_path / "lines", os.O_RDONLY) if not waits else None
    process = subprocess.Popen(
        [PROGRAM, "similar", "-m", str(tiny_built), "query"],
        stdin=subprocess.PIPE if source is None else source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        end = time.monotonic() + 60
        while "_native" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out, error) == (130, b"", b"")
        assert time.monotonic() - began < 30
    finally:
        process.kill()
        if source is not None:
            os.close(source)


def test_a_reader_that_stops_early_is_no_error_message(tiny_built: Path, shell: Shell) -> None:
    done = shell("seq 2000 | $F similar -m $1 -k 2000 query | head -c 5", tiny_built)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"0\.\d{3}", done.stdout)


# The start


@pytest.mark.native
def test_it_imports_no_more_than_encode(tiny_built: Path, notes: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec.commands.main import main
main(sys.argv[1:])
print(*sorted(sys.modules), file=sys.stderr)
"""
    found = {}
    for command, *arguments in (
        ("encode", "one", "two"),
        ("similar", "one", notes),
        ("similar", "one", notes, "--json"),
    ):
        done = fresh(code, command, "-m", tiny_built, *arguments, check=False)
        assert (done.returncode, bool(done.stdout)) == (0, True)
        found[len(found)] = {*done.stderr.split()}
    encode, similar, as_json = found.values()
    heavy = {"numpy", "onnxruntime", "tokenizers", "torch", "typer", "rich", "json", "re", "enum", "subprocess"}
    assert (similar | as_json) & heavy == set()
    assert as_json - encode <= {"firstvec.commands.similar", "heapq", "_heapq", "_operator", "operator", "math"}


@pytest.mark.native
def test_it_works_without_the_extra_cli(tiny_built: Path, notes: Path, bare: Fresh) -> None:
    done = bare("similar", "-m", tiny_built, "query", notes)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 4


def test_a_dash_is_no_query(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("similar", "-", "-m", tiny_built, stdin="a line\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the first argument is the query, and - stands for stdin" in done.stderr
