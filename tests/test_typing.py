"""Types of vectors for a type checker: ``output`` of the call decides, else ``output`` of the loader."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

ARRAY = r"numpy\.ndarray\[.*float.*32.*\]"
FLOATS, ROWS, VIEW = r"list\[float\]", r"list\[list\[float\]\]", r"memoryview\[float\]"

PROGRAM = """
from collections.abc import Sequence
from typing import Literal
from firstvec import OptimizedEmbeddingLoader, get_embedding_provider, preload_embeddings
from firstvec.provider import EmbeddingProvider

texts: Sequence[str] = ["one", "two"]
numpy = OptimizedEmbeddingLoader().get_provider()
lists = OptimizedEmbeddingLoader("model", output="list").wait_for_provider()
views = OptimizedEmbeddingLoader("model", "quantized", "cpu", True, output="buffer", min_quality=0.5).get_provider()
process_numpy = get_embedding_provider()
process_lists = get_embedding_provider("model", "lazy", 1.0, output="list", artifact="onnx-fp32")
process_views = get_embedding_provider(output="buffer", require_signature="key.pem")
annotated: EmbeddingProvider = numpy
"""
"""A program of a caller. The cases below are lines that follow it."""

CASES = {
    # The loader's output
    "numpy.embed_query('x')": ARRAY,
    "numpy.embed_chunk('x')": ARRAY,
    "numpy.embed_batch(texts)": ARRAY,
    "numpy.encode('x')": ARRAY,
    "numpy.encode(texts)": ARRAY,
    "next(numpy.encode_iter(texts))": ARRAY,
    "lists.embed_query('x')": FLOATS,
    "lists.embed_chunk('x')": FLOATS,
    "lists.embed_batch(texts)": ROWS,
    "lists.encode('x')": FLOATS,
    "lists.encode(texts)": ROWS,
    "lists.encode(texts, batch_size=8, normalize_embeddings=True)": ROWS,
    "next(lists.encode_iter(texts))": FLOATS,
    "views.embed_query('x')": VIEW,
    "views.embed_chunk('x')": VIEW,
    "views.embed_batch(texts)": VIEW,
    "views.encode('x')": VIEW,
    "views.encode(texts)": VIEW,
    "next(views.encode_iter(texts))": VIEW,
    # The output of get_embedding_provider
    "process_numpy.embed_query('x')": ARRAY,
    "process_numpy.embed_batch(texts)": ARRAY,
    "process_lists.embed_query('x')": FLOATS,
    "process_lists.embed_batch(texts)": ROWS,
    "process_views.embed_query('x')": VIEW,
    "process_views.encode(texts)": VIEW,
    "annotated.embed_query('x')": ARRAY,
    # The call's output
    "numpy.embed_query('x', 'list')": FLOATS,
    "numpy.embed_query('x', output='buffer')": VIEW,
    "numpy.embed_chunk('x', output='list')": FLOATS,
    "numpy.embed_batch(texts, output='list')": ROWS,
    "numpy.embed_batch(texts, 8, output='buffer')": VIEW,
    "numpy.encode('x', output='list')": FLOATS,
    "numpy.encode(texts, output='list')": ROWS,
    "numpy.encode(texts, output='buffer', prompt_name='query')": VIEW,
    "next(numpy.encode_iter(texts, output='list'))": FLOATS,
    "next(numpy.encode_iter(texts, output='buffer'))": VIEW,
    "lists.embed_query('x', output='numpy')": ARRAY,
    "lists.embed_batch(texts, output='numpy')": ARRAY,
    "lists.encode('x', output='buffer')": VIEW,
    "views.embed_query('x', output='list')": FLOATS,
    "views.encode('x', output='list')": FLOATS,
    "views.encode(texts, output='list')": ROWS,
    "next(views.encode_iter(texts, output='list'))": FLOATS,
    # Tensors and reduced precisions do not have the form of the output
    "numpy.encode(texts, convert_to_tensor=True)": "Any",
    "numpy.encode(texts, precision='int8')": "Any",
    # Calls whose type does not depend on the output
    "numpy.count_tokens(texts)": r"list\[int\]",
    "preload_embeddings('model', artifact='onnx-fp32').report()": r"dict\[str, Any\]",
}
"""Expression → what mypy reveals as its type."""

WRONG = (
    "OptimizedEmbeddingLoader(outptu='list')",
    "OptimizedEmbeddingLoader(min_quality='high')",
    "OptimizedEmbeddingLoader(output='tensor')",
    "get_embedding_provider(artifact=3)",
    "preload_embeddings(precision='int8')",
    "numpy.embed_query('x', output='tensor')",
    "numpy.embed_query(['x'])",
    "numpy.embed_batch(texts, output='tensor')",
)
"""Calls that mypy refuses."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What mypy says of each line of the program with the cases, in strict mode."""
    folder = tmp_path_factory.mktemp("typing")
    lines = [*PROGRAM.splitlines(), *(f"reveal_type({case})" for case in CASES), *WRONG]
    (folder / "program.py").write_text("\n".join(lines) + "\n", "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"]
    command += ["--config-file", os.devnull, "--cache-dir", str(folder / "cache"), "--no-pretty"]
    command += ["--follow-imports", "silent", "program.py"]
    environment = os.environ | {"MYPYPATH": str(REPOSITORY / "runtime")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=folder, env=environment
    )
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        match = re.match(r"program\.py:(\d+): (error|note): (.*)$", line)
        assert match, done.stdout + done.stderr
        number = int(match[1])
        found[number] = f"{found[number]}\n{match[3]}" if number in found else match[3]
    assert found, done.stdout + done.stderr
    return found


def number_of(case: str) -> int:
    """Return the number of the case's line."""
    return len(PROGRAM.splitlines()) + [*CASES, *WRONG].index(case) + 1


def test_the_program_itself_has_no_error(answers: dict[int, str]) -> None:
    assert {number: answer for number, answer in answers.items() if number <= len(PROGRAM.splitlines())} == {}


@pytest.mark.parametrize("case", CASES)
def test_the_type_follows_the_output(case: str, answers: dict[int, str]) -> None:
    found = answers[number_of(case)]
    assert re.fullmatch(rf'Revealed type is "(builtins\.)?{CASES[case]}"', found.replace("builtins.", "")), found


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_an_error(case: str, answers: dict[int, str]) -> None:
    assert number_of(case) in answers
