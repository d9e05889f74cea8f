"""The weights file: what it holds, which models have one, and the reason where a model has none."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import ExportError, Manifest, OptimizedEmbeddingLoader, _native
from firstvec_build import reference, source
from firstvec_build.exporters import native_weights
from firstvec_build.pipeline import build
from tests import tiny
from tests.conftest import Fresh


def load(folder: Path) -> Any:
    return reference.load_model(source.resolve(str(folder)))


def test_the_header_says_what_format_md_says(tiny_encoder: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.fvw"
    native_weights.write(tiny_encoder, path, None)
    data = path.read_bytes()
    magic, byte_order, version, size = struct.unpack_from("<8sIIQ", data)
    assert (magic, byte_order, version, size) == (b"firstvec", 0x01020304, 1, len(data))
    assert struct.unpack_from("<10I", data, 24) == (0, 2, 32, 4, 64, 500, 128, 1, 0, 1)
    assert struct.unpack_from("<f", data, 64)[0] == np.float32(1e-12)
    assert data[68:128] == bytes(60)
    tokens = tiny_encoder[0].auto_model.embeddings.word_embeddings.weight.detach().numpy()
    assert data[128 : 128 + tokens.nbytes] == tokens.tobytes()


def test_the_same_model_gives_the_same_bytes(tiny_encoder: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        native_weights.write(tiny_encoder, tmp_path / name, None)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("save", "options"),
    [
        (tiny.save_bert, {"pooling_mode": "cls"}),
        (tiny.save_bert, {"normalize": False}),
        (tiny.save_roberta, {}),
    ],
)
def test_models_of_the_bert_family_have_the_vectors_of_sentence_transformers(
    save: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", **options)
    root = build(str(folder), tmp_path / "bundles", only=["native-fp32"]).manifest.root
    texts = ["how do I reset my password?", "", "a " * 500, "x"]
    found = OptimizedEmbeddingLoader(root, "lazy").get_provider().encode(texts)
    np.testing.assert_allclose(found, load(folder).encode(texts), atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_activations_and_epsilon_of_the_configuration_count(activation: str, tmp_path: Path) -> None:
    folder = tiny.save_bert(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"hidden_act": activation, "layer_norm_eps": 0.01}), "utf-8"
    )
    model = load(folder)
    native_weights.write(model, tmp_path / "model.fvw", None)
    with (tmp_path / "model.fvw").open("rb") as file:
        weights = _native.Weights(file.fileno(), (tmp_path / "model.fvw").stat().st_size)
    texts = ["how do I reset my password?", "a cat"]
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    found = np.frombuffer(weights.run(rows, 1), np.float32).reshape(2, -1)
    np.testing.assert_allclose(found, model.encode(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (tiny.save_mpnet, "does not compute model_type mpnet"),
        (tiny.save_distilbert, "does not compute model_type distilbert"),
        (tiny.save_smallest, "does not compute hidden_size 4, intermediate_size 4"),
    ],
)
def test_a_model_that_the_engine_cannot_compute_has_a_reason(save: Any, reason: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    assert reason in (native_weights.find_obstacle(load(folder)) or "")
    with pytest.raises(ExportError, match=reason):
        build(str(folder), tmp_path / "bundles", only=["native-fp32"])


def test_the_manifest_and_explain_say_what_the_build_left_out(tmp_path: Path, firstvec: Fresh) -> None:
    root = Path(
        build(str(tiny.save_mpnet(tmp_path / "model")), tmp_path / "bundles", thresholds=tiny.ANY_INT8).manifest.root
    )
    reason = "the native engine does not compute model_type mpnet"
    assert Manifest.read(root).left_out == {"native-fp32": reason, "native-int8": reason}
    done = firstvec("explain", "--model", root)
    assert done.returncode == 0
    assert f"left out by the build: {reason}" in " ".join(done.stdout.split())


def test_a_weight_that_is_not_finite_is_an_export_error(tmp_path: Path) -> None:
    model = load(tiny.save_bert(tmp_path / "model"))
    model[0].auto_model.encoder.layer[0].output.dense.bias.data[3] = float("nan")
    with pytest.raises(ExportError, match=r"encoder\.layer\.0\.output\.dense\.bias: a weight is not finite"):
        native_weights.write(model, tmp_path / "model.fvw", None)
