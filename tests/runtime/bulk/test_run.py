"""Runs: each format gives the vectors of `encode`, and a run that goes on gives the bytes of an undisturbed one."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstvec.bulk import run as run_module
from firstvec.bulk.job import make_job
from firstvec.bulk.run import run
from firstvec.errors import InputChanged, InputError, JobChanged, OutputError, RowError
from tests.runtime.bulk.conftest import TEXTS, Embed, files_of, read_vectors, write_data_set, write_jsonl

FORMATS = ["a.parquet", "a.jsonl", "a.csv", "a.txt", "a.jsonl.gz", "a.csv.zst", "a.txt.gz"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_each_format_has_the_vectors_of_encode(
    name: str, output: str, tmp_path: Path, vectors: np.ndarray, embed_tiny: Embed
) -> None:
    has_columns = ".txt" not in name
    options = {"id_column": "id", "keep": ["half"]} if has_columns else {}
    summary = embed_tiny(write_data_set(tmp_path / name), tmp_path / output, **options)
    assert (summary.rows, summary.embedded, summary.bad, summary.shards) == (23, 23, 0, 5)
    np.testing.assert_array_equal(read_vectors(tmp_path / output), vectors)
    table = pq.read_table(tmp_path / output)
    if has_columns:
        assert [int(each) for each in table["id"].to_pylist()] == [*range(23)]
        assert [float(each) for each in table["half"].to_pylist()] == [index / 2 for index in range(23)]
    else:
        assert table["row"].to_pylist() == [*range(23)]
        assert {*table["file"].to_pylist()} == {str(tmp_path / name)}
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    if output == "out.parquet":
        assert pq.ParquetFile(tmp_path / output).num_row_groups == 5
        assert {path.name for path in tmp_path.iterdir()} == {name, output, f"{output}.firstvec.jsonl"}


def test_the_schema_names_model_artifact_and_quality(tmp_path: Path, embed_tiny: Embed, tiny_built: Path) -> None:
    summary = embed_tiny(write_data_set(tmp_path / "a.jsonl"), tmp_path / "out")
    manifest = json.loads((tiny_built / "firstvec.json").read_text("utf-8"))
    facts = json.loads(pq.read_schema(tmp_path / "out" / "part-00000.parquet").metadata[b"firstvec"])
    assert facts["model"] == manifest["model"]["name"] == summary.model
    assert facts["revision"] == manifest["model"]["revision"]
    [artifact] = [each for each in manifest["artifacts"] if each["id"] == facts["artifact"]]
    assert facts["quality"]["cosine_min"] == artifact["quality"]["cosine_min"]
    assert (facts["embedding_dim"], facts["dtype"], facts["normalized"]) == (32, "float32", True)


@pytest.mark.native
def test_several_inputs_are_read_in_their_order(tmp_path: Path, vectors: np.ndarray, embed_tiny: Embed) -> None:
    for name, texts in (("b.jsonl", TEXTS[12:]), ("a1.jsonl", TEXTS[:6]), ("a2.jsonl", []), ("a3.jsonl", TEXTS[6:12])):
        write_jsonl(tmp_path / name, texts)
    summary = embed_tiny([tmp_path / "a*.jsonl", tmp_path / "b.jsonl"], tmp_path / "out")
    assert (summary.rows, summary.shards) == (23, 7)  # a shard does not go over the end of a file
    np.testing.assert_array_equal(read_vectors(tmp_path / "out"), vectors)
    table = pq.read_table(tmp_path / "out")
    assert table["row"].to_pylist() == [*range(6), *range(6), *range(11)]
    assert [Path(each).name for each in table["file"].to_pylist()] == ["a1.jsonl"] * 6 + ["a3.jsonl"] * 6 + [
        "b.jsonl"
    ] * 11


def test_a_second_run_has_nothing_to_do(tmp_path: Path, embed_tiny: Embed) -> None:
    write_data_set(tmp_path / "a.parquet")
    for output in ("out", "out.parquet"):
        embed_tiny(tmp_path / "a.parquet", tmp_path / output)
        before = files_of(tmp_path)
        summary = embed_tiny(tmp_path / "a.parquet", tmp_path / output)
        assert (summary.shards_done_before, summary.shards, summary.complete) == (5, 5, True)
        assert files_of(tmp_path) == before


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.npy", "out.jsonl"])
@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_what_is_missing_is_computed_again(output: str, name: str, tmp_path: Path, embed_tiny: Embed) -> None:
    """Whatever is lost of a run that was not finished, the next run gives the bytes of an undisturbed run."""
    write_data_set(tmp_path / name)
    whole, half = tmp_path / "whole", tmp_path / "half"
    whole.mkdir()
    half.mkdir()
    embed_tiny(tmp_path / name, whole / output)
    shards = half / output if output == "out" else half / f".{output}.firstvec"
    checkpoint = half / output / "_firstvec.jsonl" if output == "out" else half / f"{output}.firstvec.jsonl"

    def fail(job: object, *_more: object) -> dict[str, object]:
        raise OutputError("x", "stopped by the test", "go on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_join", fail)
        patch.setattr(run_module.Checkpoint, "finish", fail)
        with pytest.raises(OutputError):
            embed_tiny(tmp_path / name, half / output)
    noted = checkpoint.read_bytes().splitlines(keepends=True)
    parts = sorted(shards.glob("part-*"))
    assert len(parts) == 5
    for lines, lost in (
        (noted[:1], []),
        ([*noted[:3], noted[3][:40]], []),
        (noted[:3] + noted[4:], [parts[2]]),
        (noted, [parts[1], parts[4]]),
        (noted, []),
    ):
        before = files_of(half)
        checkpoint.write_bytes(b"".join(lines))
        for path in lost:
            path.unlink()
        parts[0].write_bytes(b"damaged")
        (shards / ".part-00001.parquet.tmp").write_bytes(b"half a shard")
        embed_tiny(tmp_path / name, half / output)
        assert files_of(half) == files_of(whole)
        for path, data in before.items():
            (half / path).parent.mkdir(exist_ok=True)
            (half / path).write_bytes(data)


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
@pytest.mark.parametrize("output", ["out", "out.npy", "out.jsonl"])
def test_smaller_numbers(dtype: str, output: str, tmp_path: Path, tiny_built: Path, embed_tiny: Embed) -> None:
    from firstvec import OptimizedEmbeddingLoader

    provider = OptimizedEmbeddingLoader(str(tiny_built), "background").get_provider()
    precision = {"float16": "float32", "binary": "ubinary"}.get(dtype, dtype)
    expected = provider.encode(TEXTS, precision=precision, truncate_dim=24, normalize_embeddings=True)
    if dtype == "float16":
        expected = expected.astype(np.float16)
    embed_tiny(write_data_set(tmp_path / "a.jsonl"), tmp_path / output, dtype=dtype, truncate_dim=24, normalize=True)
    if output == "out":
        found = read_vectors(tmp_path / output)
    elif output == "out.npy":
        found = np.load(tmp_path / output)
    else:
        lines = (tmp_path / output).read_text("utf-8").splitlines()
        found = np.array([json.loads(line)["embedding"] for line in lines], expected.dtype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_json_lines_hold_every_bit(tmp_path: Path, vectors: np.ndarray, embed_tiny: Embed) -> None:
    embed_tiny(write_data_set(tmp_path / "a.parquet"), tmp_path / "out.jsonl", id_column="id", keep=["half"])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], np.float32), vectors)
    assert [(row["id"], row["half"]) for row in rows] == [(index, index / 2) for index in range(23)]


@pytest.mark.parametrize("output", ["out", "out.npy", "out.jsonl"])
@pytest.mark.parametrize("on_error", ["skip", "null"])
def test_bad_rows(output: str, on_error: str, tmp_path: Path, vectors: np.ndarray, embed_tiny: Embed) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}).encode() for text in TEXTS]
    bad = {2: b'{"text": null}', 5: b'{"text": 7}', 9: b"not JSON", 17: b'{"text": "\xff"}', 22: b'{"other": 1}'}
    for row, line in bad.items():
        lines[row] = line
    path.write_bytes(b"\n".join(lines))
    summary = embed_tiny(path, tmp_path / output, on_error=on_error)
    assert (summary.rows, summary.embedded, summary.bad) == (23, 18, 5)
    assert [(each["file"], each["row"]) for each in summary.bad_rows] == [(str(path), row) for row in bad]
    reasons = " ".join(each["reason"] for each in summary.bad_rows)
    assert all(part in reasons for part in ("is null", "is int, and no text", "not JSON", "not UTF-8", "has no 'text'"))
    good = [row for row in range(23) if row not in bad]
    if output == "out":
        table = pq.read_table(tmp_path / output)
        rows = table["embedding"].to_pylist()
        assert table["row"].to_pylist() == (good if on_error == "skip" else [*range(23)])
    elif output == "out.npy":
        rows = [None if np.isnan(row).any() else row for row in np.load(tmp_path / output)]
    else:
        rows = [json.loads(line)["embedding"] for line in (tmp_path / output).read_text("utf-8").splitlines()]
    assert [index for index, row in enumerate(rows) if row is None] == ([] if on_error == "skip" else [*bad])
    found = np.array([row for row in rows if row is not None], np.float32)
    np.testing.assert_array_equal(found, vectors[good])


def test_a_bad_row_stops_the_run_and_skip_goes_on(tmp_path: Path, embed_tiny: Embed) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*TEXTS[:12], None, *TEXTS[13:]])
    with pytest.raises(RowError, match=r"a\.jsonl: row 12 \(counted from 0\) is null; .*--on-error"):
        embed_tiny(tmp_path / "a.jsonl", tmp_path / "out")
    embed_tiny(tmp_path / "a.jsonl", tmp_path / "out", on_error="skip")
    with pytest.raises(JobChanged, match="option on_error: was 'skip', is 'null'"):
        embed_tiny(tmp_path / "a.jsonl", tmp_path / "out", on_error="null")
    embed_tiny(tmp_path / "a.jsonl", tmp_path / "other", on_error="skip")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")


def test_duplicates_are_computed_once(tmp_path: Path, vectors: np.ndarray, embed_tiny: Embed) -> None:
    texts = [TEXTS[index % 2] for index in range(10)] + TEXTS[:2]
    write_jsonl(tmp_path / "a.jsonl", texts)
    summary = embed_tiny(tmp_path / "a.jsonl", tmp_path / "out", dedupe=True)
    assert summary.duplicates == 3 + 3
    expected = vectors[[0, 1] * 6]
    np.testing.assert_array_equal(read_vectors(tmp_path / "out"), expected)


@pytest.mark.native
def test_a_changed_job_is_refused_with_what_changed(tmp_path: Path, embed_tiny: Embed) -> None:
    path = write_data_set(tmp_path / "a.jsonl")
    embed_tiny(path, tmp_path / "out")
    for options, change in (
        ({"shard_rows": 6}, "option shard_rows: was 5, is 6"),
        ({"dtype": "float16"}, "option dtype: was 'float32', is 'float16'"),
        ({"artifact": "onnx-fp32"}, "model: artifact: was 'native-fp32', is 'onnx-fp32'"),
    ):
        with pytest.raises(JobChanged) as raised:
            embed_tiny(path, tmp_path / "out", **options)
        assert change in str(raised.value)
        assert "--overwrite" in str(raised.value)
    with pytest.raises(JobChanged, match="number of inputs: was 1, is 2"):
        embed_tiny([path, write_data_set(tmp_path / "b.csv")], tmp_path / "out")
    os.utime(path, ns=(1, 1))
    with pytest.raises(JobChanged, match=r"input 0 \(.*a\.jsonl\): mtime_ns: was \d+, is 1"):
        embed_tiny(path, tmp_path / "out")
    summary = embed_tiny(path, tmp_path / "out", overwrite=True)
    assert (summary.complete, summary.shards_done_before) == (True, 0)


def test_a_changed_model_is_refused(tmp_path: Path, tiny_bundle: Path, embed_tiny: Embed) -> None:
    from tests.conftest import edit_manifest

    path = write_data_set(tmp_path / "a.jsonl")
    embed_tiny(path, tmp_path / "out", model=tiny_bundle)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    with pytest.raises(JobChanged, match="model: revision: was None, is 'another'"):
        embed_tiny(path, tmp_path / "out", model=tiny_bundle)


def test_a_single_file_that_somebody_changed_is_not_overwritten(tmp_path: Path, embed_tiny: Embed) -> None:
    path, output = write_data_set(tmp_path / "a.jsonl"), tmp_path / "out.npy"
    output.write_bytes(b"somebody else's")
    with pytest.raises(InputError, match="is there already"):
        embed_tiny(path, output)
    embed_tiny(path, output, overwrite=True)
    written = output.read_bytes()
    output.write_bytes(b"changed")
    with pytest.raises(JobChanged, match="the file: was"):
        embed_tiny(path, output)
    assert output.read_bytes() == b"changed"
    output.unlink()
    assert embed_tiny(path, output).shards_damaged == 5
    assert output.read_bytes() == written


def test_stdin_is_read_again_and_compared(tmp_path: Path, tiny_built: Path, vectors: np.ndarray) -> None:
    data = "".join(f"{text}\n" for text in TEXTS).encode()
    job = make_job("-", tmp_path / "out", model=tiny_built, shard_rows=5)
    run(job, stdin=io.BytesIO(data))
    np.testing.assert_array_equal(read_vectors(tmp_path / "out"), vectors)
    whole = files_of(tmp_path / "out")
    (tmp_path / "out" / "part-00003.parquet").unlink()
    assert run(job, stdin=io.BytesIO(data)).shards_done_before == 4
    assert files_of(tmp_path / "out") == whole
    (tmp_path / "out" / "part-00003.parquet").unlink()
    with pytest.raises(InputChanged, match="stdin gives other texts than before"):
        run(job, stdin=io.BytesIO(data.replace(b"number 2,", b"number two,")))


def test_no_rows_give_one_empty_file(tmp_path: Path, embed_tiny: Embed) -> None:
    write_jsonl(tmp_path / "a.jsonl", [])
    for name in ("out", "out.parquet", "out.npy", "out.jsonl"):
        summary = embed_tiny(tmp_path / "a.jsonl", tmp_path / name)
        assert (summary.rows, summary.shards, summary.complete) == (0, 1, True)
        assert embed_tiny(tmp_path / "a.jsonl", tmp_path / name).shards_done_before == 1
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert np.load(tmp_path / "out.npy").shape == (0, 32)


def test_the_output_is_no_input(tmp_path: Path, embed_tiny: Embed) -> None:
    path = write_data_set(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="part of the output"):
        embed_tiny(path, path)
    with pytest.raises(InputError, match="part of the output"):
        embed_tiny(path, tmp_path)
