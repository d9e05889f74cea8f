"""`firstvec encode`: texts from arguments and stdin, vectors to stdout and files."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.conftest import Fresh, edit_manifest
from tests.runtime.commands.conftest import Shell, on_a_terminal


@pytest.fixture
def vectors(tiny_built: Path) -> np.ndarray:
    return OptimizedEmbeddingLoader(str(tiny_built)).get_provider().encode(["one", "two words"])


def vector_of(bundle: Path, text: str) -> list[float]:
    """A vector as `encode --format json` prints it."""
    vector = OptimizedEmbeddingLoader(str(bundle)).get_provider().encode([text])[0]
    return [float(f"{value:.8g}") for value in vector]


@pytest.mark.native
def test_json_is_printed(tiny_built: Path, firstvec: Fresh, vectors: np.ndarray) -> None:
    done = firstvec("encode", "--model", tiny_built, "one", "two words")
    assert (done.returncode, done.stderr) == (0, "")
    values = json.loads(done.stdout)
    assert (values["artifact"], values["embedding_dim"]) == ("native-fp32", 32)
    np.testing.assert_allclose(values["vectors"], vectors, atol=1e-6)


@pytest.fixture
def prompted(tiny_bundle: Path) -> Path:
    """A bundle whose model has three prompts."""
    prompts = {"query": "a query: ", "passage": "a passage: ", "other": "other: "}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts=prompts))
    return tiny_bundle


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "text"),
        (["--query"], "a query: text"),
        (["--document"], "a passage: text"),
        (["--prompt-name", "other"], "other: text"),
    ],
)
def test_a_prompt_is_put_before_each_text(options: list[str], text: str, prompted: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "--model", prompted, *options, "text")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["vectors"] == [vector_of(prompted, text)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--query", "--document"], "--query, --document and --prompt-name name different prompts: give one of them"),
        (["--query", "--prompt-name", "other"], "give one of them"),
        (
            ["--prompt-name", "none"],
            "Prompt name 'none' not found in the configured prompts dictionary with keys ['query', 'passage', 'other']",
        ),
    ],
)
def test_a_wrong_prompt_is_refused(options: list[str], message: str, prompted: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "--model", prompted, *options, "text")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_text_is_a_line_a_vector(tiny_built: Path, firstvec: Fresh, vectors: np.ndarray) -> None:
    done = firstvec("encode", "--model", tiny_built, "--format", "text", "one", "two words")
    np.testing.assert_allclose(np.loadtxt(io.StringIO(done.stdout)), vectors, atol=1e-6)


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_stdin_is_a_text_a_line(dash: list[str], tiny_built: Path, firstvec: Fresh, vectors: np.ndarray) -> None:
    done = firstvec("encode", "-m", tiny_built, "-f", "text", *dash, stdin="one\ntwo words\n")
    np.testing.assert_allclose(np.loadtxt(io.StringIO(done.stdout)), vectors, atol=1e-6)


def test_only_newlines_end_a_text_on_stdin(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, "-f", "text", stdin="a\x0cb\u2028c\u0085d\r\n\nlast".encode())
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("quick", [True, False])
def test_behind_two_dashes_every_argument_is_a_text(
    quick: bool, tiny_built: Path, firstvec: Fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the quick parser and with typer, which alone understands a value that is glued to its option."""
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("other\n")
    model = ["-m", tiny_built] if quick else [f"-m{tiny_built}"]
    for text in ("-", "-text", "--help", "a.csv", "--"):
        done = firstvec("encode", *model, "--", text, stdin="other\n")
        assert (done.returncode, done.stderr) == (0, ""), text
        np.testing.assert_allclose(json.loads(done.stdout)["vectors"], [vector_of(tiny_built, text)], atol=1e-6)


def test_a_dash_beside_other_texts_is_refused(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, "-", "one", stdin="other\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "- stands for stdin, and other texts are given" in done.stderr
    done = firstvec("encode", "-m", tiny_built, "--", "-", "one", stdin="other\n")
    np.testing.assert_allclose(json.loads(done.stdout)["vectors"][0], vector_of(tiny_built, "-"), atol=1e-6)


def test_a_byte_order_mark_is_no_part_of_a_text(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, "-f", "jsonl", "-o", "-", stdin="\ufeffone\n")
    assert json.loads(done.stdout)["text"] == "one"


@pytest.mark.parametrize("name", ["a.csv", "./notes", "b c.txt", "it's.txt"])
@pytest.mark.parametrize("quick", [True, False])
def test_the_name_of_a_file_alone_is_refused_with_both_ways_out(
    name: str, quick: bool, tiny_built: Path, shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("one\ntwo words\n")
    form = "-f text" if quick else "-ftext"
    done = shell(f'cd $2; $F encode {form} -m $1 "$3"', tiny_built, tmp_path, name)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{name!r} is a file" in done.stderr
    # Both ways are command lines that work as they are printed.
    ways = [line.partition(": firstvec encode ")[2] for line in done.stderr.splitlines()]
    assert [way[:2] for way in ways] == ["< ", "--"]
    lines = [shell(f"cd $2; $F encode -f text -m $1 {way}", tiny_built, tmp_path).stdout for way in ways]
    assert [text.count("\n") for text in lines] == [2, 1]


def test_a_file_is_refused_before_the_model_is_looked_for(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one\n")
    done = shell("cd $1; $F encode -m no/such a.csv", tmp_path)
    assert "is a file" in done.stderr
    assert "no/such" not in done.stderr


def test_what_is_no_file_is_a_text(tiny_built: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one\n")
    (tmp_path / "README").write_text("one\n")
    (tmp_path / "folder.d").mkdir()
    for texts in ("a.csv b", "b.csv", "README", "folder.d", "'What is a.csv?'", "x/y", f"{'x' * 300}.csv"):
        done = shell(f"cd $2; $F encode -m $1 {texts}", tiny_built, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), texts
    assert len(json.loads(shell("cd $2; $F encode -m $1 a.csv b", tiny_built, tmp_path).stdout)["vectors"]) == 2


def test_a_forgotten_text_does_not_wait_at_a_terminal(tiny_built: Path) -> None:
    code, shown = on_a_terminal(["encode", "-m", tiny_built], b"")
    assert code == 1
    assert "error: there is no text" in shown


def test_a_dash_reads_what_is_typed_at_a_terminal(tiny_built: Path) -> None:
    code, shown = on_a_terminal(["encode", "-m", tiny_built, "-f", "text", "-"], b"one\ntwo words\n\x04")
    assert code == 0
    assert len([line for line in shown.splitlines() if len(line.split()) == 32]) == 2


@pytest.mark.parametrize(("precision", "width"), [("int8", 32), ("uint8", 32), ("binary", 4), ("ubinary", 4)])
def test_smaller_vectors_are_whole_numbers(precision: str, width: int, tiny_built: Path, firstvec: Fresh) -> None:
    expected = (
        OptimizedEmbeddingLoader(str(tiny_built)).get_provider().encode(["one", "two words"], precision=precision)
    )
    options = ("encode", "-m", tiny_built, "--precision", precision, "one", "two words")
    printed = firstvec(*options).stdout
    assert json.loads(printed)["vectors"] == expected.tolist()
    assert "." not in printed.partition('"vectors"')[2]
    assert len(expected[0]) == width
    lines = firstvec(*options, "--format", "text").stdout.splitlines()
    assert [[int(number) for number in line.split()] for line in lines] == expected.tolist()


def test_smaller_vectors_keep_their_type_in_npy(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, "--precision", "INT8", "-f", "npy", stdin=b"one\ntwo words")
    found = np.load(io.BytesIO(done.stdout))
    assert (found.dtype, found.shape) == (np.int8, (2, 32))


def test_npy_does_not_go_to_a_terminal(tiny_built: Path) -> None:
    code, shown = on_a_terminal(["encode", "-m", tiny_built, "-f", "npy", "one"], b"")
    assert code == 1
    assert "add --output FILE" in shown


def test_npy_goes_to_a_file_and_to_a_pipe(
    tiny_built: Path, tmp_path: Path, firstvec: Fresh, vectors: np.ndarray
) -> None:
    target = tmp_path / "vectors.npy"
    assert firstvec("encode", "-m", tiny_built, "-f", "npy", "-o", target, "one", "two words").returncode == 0
    np.testing.assert_array_equal(np.load(target), vectors)
    assert np.load(target).dtype == np.float32
    assert [path.name for path in tmp_path.iterdir() if "vectors" in path.name] == ["vectors.npy"]
    piped = firstvec("encode", "-m", tiny_built, "-f", "npy", stdin=b"one\ntwo words")
    np.testing.assert_array_equal(np.load(io.BytesIO(piped.stdout)), vectors)


ODD_TEXTS = [
    *('say "hi", twice', "two\nlines", "", "ä, ü and 雪", "  spaces  ", "=1+1", "NA", "a\r\nb", "1.5", "it's, \\ \t")
]
OPENED = """
import csv, duckdb, json, pandas, polars, sys

def read(path):
    table = pandas.read_csv(path + ".csv", keep_default_na=False, dtype={"text": str})
    yield "pandas csv", table["text"].tolist(), table.drop(columns="text").to_numpy().tolist()
    table = pandas.read_json(path + ".jsonl", lines=True, dtype={"text": str})
    yield "pandas jsonl", table["text"].tolist(), table["vector"].tolist()
    table = polars.read_csv(path + ".csv", schema_overrides={"text": polars.String})
    yield "polars csv", table["text"].to_list(), table.drop("text").to_numpy().tolist()
    table = polars.read_ndjson(path + ".jsonl")
    yield "polars jsonl", table["text"].to_list(), table["vector"].to_list()
    rows = duckdb.execute("SELECT * FROM read_csv(?, types={'text': 'VARCHAR'})", [path + ".csv"]).fetchall()
    yield "duckdb csv", [row[0] for row in rows], [row[1:] for row in rows]
    rows = duckdb.execute("SELECT text, vector FROM read_json(?)", [path + ".jsonl"]).fetchall()
    yield "duckdb jsonl", [row[0] for row in rows], [row[1] for row in rows]
    with open(path + ".csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", *(f"v{index}" for index in range(len(rows[0]) - 1))]
    yield "csv", [row[0] for row in rows], [[*map(float, row[1:])] for row in rows]
    rows = [json.loads(line) for line in open(path + ".jsonl", encoding="utf-8")]
    yield "jsonl", [row["text"] for row in rows], [row["vector"] for row in rows]

print(json.dumps([[*read(path)] for path in sys.argv[1:]]))
"""


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("pandas", "polars", "duckdb")), reason="the group interop is not installed"
)
def test_tables_are_read_by_the_programs_that_people_have(
    tiny_built: Path, tmp_path: Path, firstvec: Fresh, fresh: Fresh
) -> None:
    precisions = ("float32", "int8", "binary")
    expected = []
    for precision in precisions:
        options = ["-m", tiny_built, "--precision", precision]
        for ending in ("csv", "jsonl"):
            done = firstvec("encode", *options, "-o", tmp_path / f"{precision}.{ending}", "--", *ODD_TEXTS)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        expected.append(json.loads(firstvec("encode", *options, "--", *ODD_TEXTS).stdout)["vectors"])
    found = json.loads(fresh(OPENED, *(tmp_path / precision for precision in precisions)).stdout)
    for precision, programs, vectors in zip(precisions, found, expected, strict=True):
        assert len(programs) == 8
        for program, texts, read in programs:
            assert [text or "" for text in texts] == ODD_TEXTS, program  # some read an empty text as a missing one
            np.testing.assert_allclose(read, vectors, rtol=0, atol=1e-7, err_msg=program)
        numbers = (tmp_path / f"{precision}.csv").read_text().splitlines()[-1].rpartition('",')[2]
        assert ("." in numbers) is (precision == "float32")


def test_a_table_has_a_row_for_each_line_of_stdin(tiny_built: Path, firstvec: Fresh) -> None:
    for form in ("csv", "jsonl"):
        lines = firstvec("encode", "-m", tiny_built, "-f", form, "-", stdin='one\n\n"two"\n').stdout.splitlines()
        if form == "csv":
            assert [line.split(",")[0] for line in lines] == ["text", '"one"', '""', '"""two"""']
            assert {line.count(",") for line in lines} == {32}
        else:
            assert [json.loads(line)["text"] for line in lines] == ["one", "", '"two"']
            assert {len(json.loads(line)["vector"]) for line in lines} == {32}


def form_of(data: bytes) -> str:
    for beginning, form in ((b"\x93NUMPY", "npy"), (b"text,v0,", "csv"), (b'{"text": ', "jsonl"), (b"{", "json")):
        if data.startswith(beginning):
            return form
    return "text"


@pytest.mark.parametrize(
    ("name", "form", "written"),
    [
        ("x.npy", None, "npy"),
        ("x.NPY", None, "npy"),
        ("x.txt", None, "text"),
        ("x.json", None, "json"),
        ("x.jsonl", None, "jsonl"),
        ("x.ndjson", None, "jsonl"),
        ("x.csv", None, "csv"),
        ("x.CSV", None, "csv"),
        ("x", None, "json"),
        ("x.out", None, "json"),
        (".npy", None, "json"),
        ("x.npy", "text", "text"),
        ("x.txt", "json", "json"),
        ("x.json", "npy", "npy"),
        ("x.csv", "text", "text"),
        ("x.json", "JSONL", "jsonl"),
        ("x.tsv", "csv", "csv"),
        ("x.parquet", "npy", "npy"),
    ],
)
def test_the_ending_of_the_output_chooses_the_format_unless_it_is_given(
    name: str, form: str | None, written: str, tiny_built: Path, tmp_path: Path, firstvec: Fresh
) -> None:
    done = firstvec(
        "encode", "-m", tiny_built, "-o", tmp_path / name, *(["--format", form] if form is not None else []), "one"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert form_of((tmp_path / name).read_bytes()) == written


@pytest.mark.parametrize(
    "ending", ["parquet", "PARQUET", "tsv", "npz", "pkl", "json.gz", "csv.zst", "safetensors", "zip"]
)
def test_an_ending_of_another_format_is_refused_before_the_model_is_looked_for(
    ending: str, tmp_path: Path, firstvec: Fresh
) -> None:
    done = firstvec("encode", "-m", "no/such", "-o", tmp_path / f"x.{ending}", "one")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"encode writes json, jsonl, csv, npy and text, and not {ending.lower().rpartition('.')[2]}" in done.stderr
    assert "choose another --output, or give the --format" in done.stderr
    assert "no/such" not in done.stderr
    assert [*tmp_path.glob("x*")] == []


@pytest.mark.native
def test_the_strategy_and_its_options_choose_the_artifact(tiny_built: Path, firstvec: Fresh) -> None:
    for options, artifact in (
        (["-s", "quantized"], "native-int8"),
        (["-s", "QUANTIZED"], "native-int8"),
        (["--enable-quantization"], "native-int8"),
        (["-s", "quantized", "--artifact", "onnx-int8-avx2"], "onnx-int8-avx2"),
        (["--artifact", "torchscript-fp32"], "torchscript-fp32"),
        (["--enable-quantization", "--min-quality", "1"], "native-fp32"),
    ):
        done = firstvec("encode", "-m", tiny_built, *options, "one")
        assert json.loads(done.stdout)["artifact"] == artifact, options


@pytest.mark.parametrize(("stdin", "message"), [("", "there is no text"), (b"\xff\xfe", "not UTF-8")])
def test_without_a_usable_text_it_fails(stdin: str | bytes, message: str, tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("encode", "-m", tiny_built, stdin=stdin)
    assert done.returncode == 1
    assert message in str(done.stderr)
    assert "Traceback" not in str(done.stderr)


def test_an_argument_that_is_not_utf8_is_named(tiny_built: Path, shell: Shell) -> None:
    done = shell(r"$F encode -m $1 one $'\xff'", tiny_built)
    assert done.returncode == 1
    assert "text 1: has a lone surrogate" in done.stderr


@pytest.mark.parametrize(
    ("form", "numpy"), [("json", False), ("jsonl", False), ("csv", False), ("text", False), ("npy", True)]
)
def test_only_what_is_needed_is_imported(
    form: str, numpy: bool, tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    code = """
import sys
from firstvec.commands.main import main
main(["encode", "-m", sys.argv[1], "-f", sys.argv[2], "-o", sys.argv[3], "text"])
print(sorted({"typer", "rich", "click", "numpy", "csv", "json", "re", "enum", "argparse"} & set(sys.modules)))
"""
    imported = fresh(code, tiny_built, form, tmp_path / "vectors").stdout
    assert ("numpy" in imported, "typer" in imported, "rich" in imported) == (numpy, False, False)
    assert numpy or imported == "[]\n"
    assert (tmp_path / "vectors").stat().st_size > 32 * 4


def test_what_is_no_regular_file_is_written_through(tiny_built: Path, tmp_path: Path, firstvec: Fresh) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert firstvec("encode", "-m", tiny_built, "-o", link, "text").returncode == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["embedding_dim"] == 32
    assert target.stat().st_mode & 0o777 == 0o640
    assert firstvec("encode", "-m", tiny_built, "-o", "/dev/null", "text").returncode == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("redirected", ["-o /dev/stdout | cat", "-o >(cat)", "-o /dev/stdout", "-o /dev/fd/1 | cat"])
def test_a_pipe_is_written_to(redirected: str, tiny_built: Path, shell: Shell) -> None:
    done = shell(f"$F encode -m $1 text {redirected}", tiny_built)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["embedding_dim"] == 32


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_file_is_written_with_a_closed_stream(closed: str, tiny_built: Path, tmp_path: Path, shell: Shell) -> None:
    assert shell(f"$F encode -m $1 text -o $2 {closed}", tiny_built, tmp_path / "out").returncode == 0
    assert json.loads((tmp_path / "out").read_text())["embedding_dim"] == 32


def test_a_closed_stdin_has_no_text(tiny_built: Path, shell: Shell) -> None:
    for dash in ("", "-"):
        done = shell(f"$F encode -m $1 {dash} <&-", tiny_built)
        assert (done.returncode, done.stdout) == (1, "")
        assert "there is no text" in done.stderr


@pytest.mark.parametrize("name", ["a" * 250 + ".json", "ä b.json", ".hidden"])
def test_any_name_that_the_file_system_takes(name: str, tiny_built: Path, tmp_path: Path, shell: Shell) -> None:
    done = shell('$F encode -m $1 text -o "$2"', tiny_built, tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("output", ["''", "/no/such/folder/file", "/proc/nonexistent/x.json", "/tmp", "new/", "loop"])
def test_an_output_that_cannot_be_written_is_named(output: str, tiny_built: Path, tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "loop").symlink_to("loop")
    done = shell(f"cd $2; $F encode -m $1 text -o {output}", tiny_built, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "choose another --output" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
