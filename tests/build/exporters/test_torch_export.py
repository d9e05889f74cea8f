"""The artifact of torch.export, which a build makes on request."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import OptimizedEmbeddingLoader
from firstvec.errors import ExportError
from firstvec_build.pipeline import build
from firstvec_build.quality import evaluation_sentences
from tests.conftest import REPOSITORY, Fresh


@pytest.fixture(scope="module")
def root(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the artifact of torch.export, and with no other."""
    return Path(build(str(tiny_model), tmp_path_factory.mktemp("pt2"), only=["pt2-fp32"]).manifest.root)


def test_a_build_makes_it_on_request_only(tiny_built: Path) -> None:
    manifest = json.loads((tiny_built / "firstvec.json").read_text("utf-8"))
    assert "pt2-fp32" not in [artifact["id"] for artifact in manifest["artifacts"]]
    assert not (tiny_built / "torch_export").exists()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 128), (7, 5)])
def test_batch_and_length_are_dynamic(tiny_encoder: Any, root: Path, shape: tuple[int, int]) -> None:
    import torch

    ids = torch.randint(5, 400, shape, generator=torch.Generator().manual_seed(shape[0]))
    mask = torch.ones_like(ids)
    mask[0, shape[1] // 2 + 1 :] = 0  # one row is padded
    with torch.inference_mode():
        expected = tiny_encoder({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
        found = torch.export.load(str(root / "torch_export" / "model.pt2")).module()(ids, mask)
    assert found.shape == (shape[0], 32)
    assert np.abs(found.numpy() - expected.numpy()).max() <= 1e-6


def test_the_loader_gives_the_vectors_of_sentence_transformers(root: Path, tiny_encoder: Any) -> None:
    texts = evaluation_sentences()[::8]
    loader = OptimizedEmbeddingLoader(str(root), "background", device="cpu")
    loader.start_loading()
    provider = loader.get_provider(timeout=None)
    assert loader.report()["engine"].endswith("(torch.export, cpu)")
    assert np.abs(provider.encode(texts) - tiny_encoder.encode(texts)).max() <= 1e-5


FIRST_VECTOR = """
import sys, warnings
warnings.simplefilter("error")
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], "lazy", device="cpu", output="list")
print(len(loader.get_provider(timeout=None).embed_query("a text")), loader.report()["artifact"])
"""


def test_a_fresh_process_loads_it_without_warnings(root: Path, fresh: Fresh) -> None:
    assert fresh(FIRST_VECTOR, root).stdout == "32 pt2-fp32\n"


def test_a_later_torch_gives_the_same_vector(root: Path, fresh: Fresh) -> None:
    later = os.environ.get("FIRSTVEC_LATER_TORCH")
    if not later:
        pytest.skip("FIRSTVEC_LATER_TORCH names no Python with a later torch, whose wheel can come with CUDA")
    code = VECTOR.format(root=str(root))
    paths = os.pathsep.join([str(REPOSITORY / "runtime"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [later, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
    )
    (theirs, their_torch), (ours, our_torch) = json.loads(done.stdout), json.loads(fresh(code).stdout)
    assert their_torch > our_torch
    assert np.abs(np.subtract(theirs, ours)).max() <= 1e-6


VECTOR = """
import json
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader({root!r}, "lazy", device="cpu", output="list")
vector = loader.get_provider(timeout=None).embed_query("a text")
import torch
print(json.dumps([vector, [*map(int, torch.__version__.split("+")[0].split("."))]]))
"""

EXPORT = """
import hashlib, sys
from pathlib import Path
from firstvec_build import reference, source
from firstvec_build.exporters import torch_export
model = reference.load_model(source.resolve(sys.argv[1]))
torch_export.export(model, Path(sys.argv[2]))
print(hashlib.sha256(Path(sys.argv[2]).read_bytes()).hexdigest())
"""


def test_the_same_model_gives_the_same_bytes(tiny_model: Path, tmp_path: Path, fresh: Fresh) -> None:
    digests = {fresh(EXPORT, tiny_model, tmp_path / f"{seed}.pt2", PYTHONHASHSEED=seed).stdout for seed in ("1", "2")}
    assert len(digests) == 1


def test_a_model_that_cannot_be_exported_is_an_export_error(tiny_encoder: Any, tmp_path: Path) -> None:
    import copy

    import torch

    from firstvec_build.exporters import torch_export

    class Branching(torch.nn.Module):
        """A branch on a value, which no graph can hold."""

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            if features["sentence_embedding"].sum() > 0:
                return features
            return {**features, "sentence_embedding": -features["sentence_embedding"]}

    branching = copy.deepcopy(tiny_encoder)
    branching.append(Branching())
    with pytest.raises(ExportError, match=r"torch\.export cannot export the model"):
        torch_export.export(branching, tmp_path / "out" / "model.pt2")
    assert not (tmp_path / "out").exists()
