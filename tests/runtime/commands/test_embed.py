"""`firstvec embed`, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import Fresh
from tests.runtime.bulk.conftest import TEXTS, files_of, read_vectors, vectors, write_data_set, write_jsonl

__all__ = ["vectors"]


def test_a_folder_of_shards(tmp_path: Path, tiny_built: Path, vectors: np.ndarray, firstvec: Fresh) -> None:
    write_data_set(tmp_path / "a.csv")
    arguments = ["embed", tmp_path / "*.csv", "--output", tmp_path / "out", "--model", tiny_built, "--shard-rows", 10]
    done = firstvec(*arguments, "--id-column", "id", "--keep", "half, text")
    assert (done.returncode, done.stderr) == (0, "")
    assert "23 vectors of 23 rows in 3 shards" in done.stdout
    np.testing.assert_array_equal(read_vectors(tmp_path / "out"), vectors)
    assert pq.read_table(tmp_path / "out").column_names == ["id", "half", "text", "embedding"]
    again = firstvec(*arguments, "--id-column", "id", "--keep", "half,text", "--json")
    assert json.loads(again.stdout)["shards_done_before"] == 3


def test_stdin_bad_rows_and_quiet(tmp_path: Path, tiny_built: Path, vectors: np.ndarray, firstvec: Fresh) -> None:
    lines = [*(text.encode() for text in TEXTS), b"\xff"]
    common = ["embed", "-", "--model", tiny_built, "--on-error"]
    done = firstvec(*common, "skip", "-o", tmp_path / "out.npy", stdin=b"\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert b"1 rows have no usable text (left out)" in done.stdout
    assert b"-: row 23 is not UTF-8" in done.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors)
    quiet = firstvec(*common, "null", "-o", tmp_path / "quiet", "--quiet", stdin=b"\n".join(lines))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl"], "error: --output is missing"),
        (["a.jsonl", "--output", "out.xlsx"], "is neither a folder nor a file"),
        (["nothing.jsonl", "--output", "out"], "error: no such file: 'nothing.jsonl'"),
        (["a.jsonl", "--output", "out", "--text-column", "body"], "has no column 'body', it has 'id', 'text', 'half'"),
        (["a.jsonl", "--output", "out", "--model", "no-such"], "no bundle for model 'no-such' was found"),
    ],
)
def test_wrong_use_is_one_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    tiny_built: Path,
    monkeypatch: pytest.MonkeyPatch,
    firstvec: Fresh,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl")
    done = firstvec("embed", *([] if "--model" in arguments else ["--model", tiny_built]), *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, firstvec: Fresh) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pyarrow'] = None\n", "utf-8")
    done = firstvec("embed", "a.jsonl", "--output", "out", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "needs pyarrow, which is not installed: pip install 'firstvec[bulk]'" in done.stderr


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(times: int, tmp_path: Path, tiny_built: Path) -> None:
    """The first Ctrl-C finishes the shards under way and says how to go on, and the second one ends at once."""
    write_jsonl(tmp_path / "a.jsonl", TEXTS * 3000)
    command = [sys.executable, "-m", "firstvec", "embed", str(tmp_path / "a.jsonl"), "--model", str(tiny_built)]
    command += ["--output", str(tmp_path / "out"), "--shard-rows", "200"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        restore_signals=True,
        preexec_fn=_take_sigint,
    )
    deadline = time.monotonic() + 60
    while not [*(tmp_path / "out").glob("part-*")] and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05 if times == 2 else 0)
    stdout, stderr = process.communicate(timeout=60)
    # The second one may come when Python is about to exit.
    assert process.returncode in ((130,) if times == 1 else (130, -signal.SIGINT)), (stdout, stderr)
    assert "Traceback" not in stderr
    shards = len([*(tmp_path / "out").glob("part-*")])
    assert 1 <= shards < 345
    if times == 1:
        assert f"stopped with {shards} shards done; run the same command again to go on" in stderr
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(files_of(tmp_path / "out")) == 346


def _take_sigint() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_cold_start_imports_none_of_it(tiny_built: Path, fresh: Fresh) -> None:
    code = (
        "import sys; from firstvec.commands.main import main\n"
        "main(['encode', '--model', sys.argv[1], '--format', 'text', 'one'])\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('pyarrow', 'rich') or 'bulk' in name])"
    )
    assert fresh(code, tiny_built).stdout.splitlines()[-1] == "[]"
