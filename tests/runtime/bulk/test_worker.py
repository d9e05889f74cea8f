"""The worker process's messages, and that it imports little."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstvec.bulk.job import make_job
from firstvec.bulk.worker import describe, load, load_with_cores, read_message, write_message
from firstvec.options import make_options
from tests.conftest import Fresh


def test_messages_come_whole_or_not_at_all() -> None:
    stream = io.BytesIO()
    write_message(stream, ["one", "zwei é", None])
    write_message(stream, ("vectors", b"1234"))
    data = stream.getvalue()
    stream.seek(0)
    assert read_message(stream) == ["one", "zwei é", None]
    assert read_message(stream) == ("vectors", b"1234")
    for length in (0, 5, len(data) - 1):
        torn = io.BytesIO(data[:length])
        with pytest.raises(EOFError):  # in the first or in the second message
            read_message(torn), read_message(torn)


@pytest.mark.native
def test_the_description_changes_with_whatever_decides_a_vector(tiny_bundle: Path) -> None:
    from tests.conftest import edit_manifest

    def found(**options: Any) -> dict[str, Any]:
        return describe(load(make_job("-", "out", model=tiny_bundle, **options).options))

    before = found()
    assert found() == before
    changed = found(artifact="onnx-fp32")
    assert {name for name in before if before[name] != changed[name]} >= {"artifact", "artifact_sha256", "engine"}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts={"query": "q: "}))
    changed = found()
    assert {name for name in before if before[name] != changed[name]} == {"model_sha256"}


def test_a_worker_imports_no_pyarrow_and_no_numpy(fresh: Fresh) -> None:
    code = "import sys, firstvec.bulk.worker; print(sorted({'pyarrow', 'numpy', 'rich', 'torch'} & {*sys.modules}))"
    assert fresh(code).stdout == "[]\n"


def test_a_worker_ends_with_its_stdin(tiny_built: Path) -> None:
    job = make_job("-", "out", model=tiny_built)
    process = subprocess.Popen(
        [sys.executable, "-c", "from firstvec.bulk.worker import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    write_message(process.stdin, pickle.dumps((job.options, 1, "none", job.encode_arguments())))
    kind, about = read_message(process.stdout)
    assert (kind, about["embedding_dim"]) == ("ready", 32)
    write_message(process.stdin, ["one", "two"])
    kind, vectors = read_message(process.stdout)
    assert (kind, len(vectors)) == ("vectors", 2 * 32 * 4)
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.mark.native
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="macOS has no affinity")
def test_a_model_has_as_many_threads_as_it_was_given_cores(tiny_built: Path) -> None:
    usable = os.sched_getaffinity(0)
    provider = load_with_cores(make_options(str(tiny_built), "background", output="buffer"), 1)
    assert os.sched_getaffinity(0) == usable
    assert provider._sessions._owned.session._options.threads == 1
