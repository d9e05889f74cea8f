"""TorchScript in torch: the reference vectors, the number of threads, and files that are verified."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import LoadingStrategy, Manifest, OptimizedEmbeddingLoader
from firstvec.bundle.integrity import OpenFile
from firstvec.loading.opening import open_artifact, verify_artifact
from tests.conftest import Fresh
from tests.loads import artifact_of, load


def vectors_of(root: Path, rows: list[list[int]]) -> Any:
    """Return what a new session of the TorchScript artifact computes."""
    manifest = Manifest.read(root)
    session = open_artifact(verify_artifact(manifest, artifact_of(manifest, "torchscript-fp32"))).session
    assert session.engine.endswith("(TorchScript, cpu)")
    vectors = session.run(rows).tolist()
    session.close()
    return vectors


def test_torchscript_is_taken_where_torch_is_loaded_already(bundle: Path, sentence_transformer: Any) -> None:
    loader = OptimizedEmbeddingLoader(str(bundle), LoadingStrategy.CACHED)
    assert "torch" in loader.resource_profile.loaded_engines
    provider = loader.get_provider()
    assert provider.artifact.id == "torchscript-fp32"
    texts = ["x", "how do I reset my password?", "two " * 400]
    np.testing.assert_allclose(provider.encode(texts), sentence_transformer.encode(texts), atol=1e-5)


@pytest.mark.native
@pytest.mark.parametrize("artifact_id", ["native-fp32", "onnx-fp32"])
def test_all_engines_compute_the_same_vectors(artifact_id: str, tiny_built: Path) -> None:
    provider = load(tiny_built, artifact=artifact_id).get_provider()
    rows = provider._tokenizer.tokenize(["text", "a longer text", ""])
    assert provider.artifact.id == artifact_id
    np.testing.assert_allclose(vectors_of(tiny_built, rows), np.asarray(provider.session.run(rows)), atol=1e-5)


def test_without_proc_torchscript_is_given_what_was_verified(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = vectors_of(tiny_built, [[2, 5, 3]])
    monkeypatch.setattr(OpenFile, "alias", None)
    assert vectors_of(tiny_built, [[2, 5, 3]]) == expected


def test_a_program_that_makes_warnings_errors_can_load_it(tiny_built: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(vectors_of(tiny_built, [[2, 5, 3]])[0]) == 32


THREADS = """
import sys
if sys.argv[2] == "the program's":
    import torch
    torch.set_num_threads(13)
else:
    sys.modules.pop("torch", None)
from firstvec import OptimizedEmbeddingLoader
from firstvec.machine import limits
limits.usable_cores = lambda: 1
OptimizedEmbeddingLoader(sys.argv[1], device="cpu", artifact="torchscript-fp32").get_provider().embed_query("text")
import torch
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(("whose", "threads"), [("the program's", "13"), ("firstvec's", "1")])
def test_the_number_of_threads_belongs_to_the_program_that_imported_torch(
    whose: str, threads: str, tiny_built: Path, fresh: Fresh
) -> None:
    assert fresh(THREADS, tiny_built, whose).stdout == f"{threads}\n"
