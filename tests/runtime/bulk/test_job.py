"""The options of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstvec.bulk.job import Job, make_job
from firstvec.errors import InputError


@pytest.mark.parametrize(
    ("output", "single", "form"),
    [
        ("out", False, "parquet"),
        ("out/", False, "parquet"),
        ("out.parquet", True, "parquet"),
        ("out.pq", True, "parquet"),
        ("out.jsonl", True, "jsonl"),
        ("OUT.NPY", True, "npy"),
    ],
)
def test_the_ending_of_the_output_decides(output: str, single: bool, form: str) -> None:
    job = make_job("a.jsonl", output)
    assert (job.single, job.output_format) == (single, form)


def test_a_folder_may_look_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "v1.5").mkdir()
    assert not make_job("a.jsonl", tmp_path / "v1.5").single


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": []}, "there is no input"),
        ({"output": "out.csv"}, r"'out\.csv' is neither a folder nor a file that ends with"),
        ({"output": "out.npy", "output_format": "parquet"}, "does not have the ending of parquet"),
        ({"output_format": "csv"}, "unknown output_format 'csv'"),
        ({"input_format": "xml"}, "unknown input_format 'xml'"),
        ({"dtype": "uint8"}, "unknown dtype 'uint8': use one of float32, float16, int8, binary"),
        ({"on_error": "ignore"}, "unknown on_error 'ignore'"),
        ({"workers": 0}, "workers 0 is not a positive integer"),
        ({"shard_rows": True}, "shard_rows True is not a positive integer"),
        ({"truncate_dim": -1}, "truncate_dim -1 is not a positive integer"),
        ({"query": True, "document": True}, "name different prompts"),
        ({"text_column": ""}, "the name of a column"),
        ({"id_column": "id", "keep": ["id"]}, "the column 'id' twice"),
        ({"keep": ["row"]}, "the column 'row' twice"),
        ({"keep": ["embedding"]}, "the column 'embedding' twice"),
        ({"output": "out.npy", "keep": ["title"]}, "npy holds vectors only"),
        ({"output": "out.npy", "on_error": "null", "dtype": "int8"}, "no number that means null"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_job(**{"inputs": "a.jsonl", "output": "out"} | changes)


def test_settings_are_all_options_that_decide_the_bytes() -> None:
    """An option is either one of the settings, or its effect is compared in another way, or it changes no byte."""
    elsewhere = {"inputs", "output", "single", "options"}
    without_effect = {"workers", "ray", "overwrite"}
    assert {*Job._fields} == {*make_job("a.jsonl", "out").settings()} | elsewhere | without_effect
