"""Families of models: a small random model of each, built, run by the runtime and compared with sentence-transformers.

docs/models.md shows what these tests find. `test_architectures.py` has more of the families that BERT began.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec.bundle.manifest import Artifact
from firstvec.errors import ExportError, QualityError
from firstvec.text.tokenizer import open_tokenizer
from firstvec_build.exporters import torchscript
from firstvec_build.exporters.native_weights import find_obstacle
from firstvec_build.pipeline import build
from firstvec_build.quality import Thresholds, cosine, evaluation_sentences, neighbour_overlap
from firstvec_build.reference import load_model
from firstvec_build.source import resolve
from tests.build.conftest import INT8_HERE
from tests.build.models_page import PAGE, row
from tests.build.test_architectures import TEXTS, Built, open_provider, relative_difference, save, save_variant

MODELS: dict[str, Callable[[Path], Path]] = {
    "xlm-roberta": save("save_xlm_roberta"),
    "albert": save("save_albert"),
    "deberta-v2": save("save_deberta"),
    "modernbert": save("save_modernbert"),
    "nomic-bert": save("save_nomic_bert"),
    "t5": save("save_t5"),
    "qwen3": save("save_qwen3"),
    "gemma3": save("save_gemma"),
}


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_variant(tmp_path_factory.mktemp(request.param) / request.param, MODELS[request.param])


def build_variant(folder: Path, save_model: Callable[[Path], Path], only: tuple[str, ...] = ()) -> Built:
    """Build ONNX in fp32 and INT8, and the native engine's files if that engine computes the model."""
    from sentence_transformers import SentenceTransformer

    from tests.tiny import ANY_INT8

    save_model(folder)
    model = SentenceTransformer(str(folder), device="cpu")
    native = ("native-fp32", "native-int8") if find_obstacle(model) is None else ()
    only = only or ("onnx-fp32", INT8_HERE, *native)
    manifest = build(str(folder), folder.parent / "bundles", only=only, thresholds=ANY_INT8).manifest
    return Built(folder, manifest, model, model.encode(TEXTS))


def find_refusal(artifact: Artifact) -> str | None:
    """Return why a build with the default thresholds refuses the artifact. None: the build publishes it."""
    try:
        Thresholds().enforce(artifact, artifact.quality)
    except QualityError as error:
        return error.finding
    return None


def test_random_model_gives_different_vectors_to_different_texts(built: Built) -> None:
    unit = built.reference / np.linalg.norm(built.reference, axis=1, keepdims=True)
    assert (unit @ unit.T)[~np.eye(len(unit), dtype=bool)].mean() < 0.95


def test_full_precision_gives_the_reference_vectors(built: Built) -> None:
    found = [artifact for artifact in built.manifest.artifacts if artifact.precision == "fp32"]
    assert found
    for artifact in found:
        vectors = open_provider(built.manifest, artifact.id).encode(TEXTS)
        assert relative_difference(vectors, built.reference) <= 1e-5, artifact.id


def test_int8_gives_nearly_the_reference_vectors_or_is_refused_with_its_figure(built: Built) -> None:
    found = [artifact for artifact in built.manifest.artifacts if artifact.precision == "int8"]
    assert found
    for artifact in found:
        vectors = open_provider(built.manifest, artifact.id).encode(TEXTS)
        if (refusal := find_refusal(artifact)) is None:
            assert cosine(vectors, built.reference).min() >= 0.97, artifact.id
        else:
            assert "must be at least" in refusal
            # A single text of a random model may lose its direction: T5 has one with cosine 0.6.
            assert np.median(cosine(vectors, built.reference)) >= 0.9, artifact.id


def test_torchscript_gives_the_reference_vectors_in_any_batch(built: Built, tmp_path: Path) -> None:
    import torch

    model = load_model(resolve(str(built.folder)))
    torchscript.export(model, tmp_path / "model.pt")
    texts = TEXTS[::40]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.jit.load(str(tmp_path / "model.pt"))
    model.tokenizer.padding_side = "right"  # as the runtime pads
    inputs = model.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        together = program(inputs["input_ids"], inputs["attention_mask"]).numpy()
        alone = program(inputs["input_ids"][:1], inputs["attention_mask"][:1]).numpy()
    assert inputs["attention_mask"].sum(dim=1).unique().numel() > 3  # texts of several lengths
    assert relative_difference(together, built.reference[::40]) <= 1e-5
    assert relative_difference(alone, built.reference[:1]) <= 1e-5


def test_padding_does_not_change_a_vector(built: Built) -> None:
    for artifact in built.manifest.artifacts:
        assert artifact.quality.batch_cosine_min >= 0.9999, artifact.id


def test_tokens_are_those_of_the_reference(built: Built) -> None:
    expected = built.model.tokenizer(TEXTS, truncation=True, max_length=built.model.max_seq_length)["input_ids"]
    assert open_tokenizer(built.manifest).tokenize(TEXTS) == expected
    assert max(map(len, expected)) == built.model.max_seq_length == 128  # some are truncated


def test_manifest_describes_the_model(built: Built) -> None:
    model = built.manifest.model
    assert model.architecture == type(built.model[0].auto_model).__name__
    assert model.embedding_dim == built.reference.shape[1]
    assert model.normalized == bool(np.allclose(np.linalg.norm(built.reference, axis=1), 1, atol=1e-4))
    assert model.pad_token_id == built.model.tokenizer.pad_token_id


def test_page_has_the_row_that_is_found(built: Built) -> None:
    assert row(built.folder.name, built.manifest) in PAGE.read_text("utf-8").splitlines()


def test_prompts_give_the_vectors_of_encode_query_and_encode_document(built: Built) -> None:
    provider = open_provider(built.manifest, "onnx-fp32")
    texts = TEXTS[:20]
    assert relative_difference(provider.encode_query(texts), built.model.encode_query(texts)) <= 1e-5
    assert relative_difference(provider.encode_document(texts), built.model.encode_document(texts)) <= 1e-5


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_models_with_instructions_have_prompts(name: str, tmp_path: Path) -> None:
    # The test above would prove nothing if these models had none.
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(MODELS[name](tmp_path / name)), device="cpu")
    assert model.prompts["query"]
    assert not np.allclose(model.encode_query("a text"), model.encode("a text"), atol=0.01)


def all_poolings(modules: list[Any], kinds: Any) -> list[Any]:
    modes = kinds.Pooling.POOLING_MODES
    assert {"weightedmean", "mean_sqrt_len_tokens", "lasttoken"} < set(modes)
    return [modules[0], kinds.Pooling(32, pooling_mode=modes)]


def layer_norm(modules: list[Any], kinds: Any) -> list[Any]:
    return [*modules[:2], kinds.LayerNorm(32), kinds.Dropout(0.1), kinds.Dense(32, 24, use_residual=True)]


@pytest.mark.parametrize(
    ("change", "dim", "pooling_mode"),
    [
        (all_poolings, 192, "cls+max+mean+mean_sqrt_len_tokens+weightedmean+lasttoken"),
        (layer_norm, 24, "mean"),
    ],
)
def test_poolings_and_later_modules_give_the_reference_vectors(
    change: Callable[[list[Any], Any], list[Any]], dim: int, pooling_mode: str, tmp_path: Path
) -> None:
    built = build_variant(tmp_path / "model", lambda folder: save_variant(folder, change), ("onnx-fp32",))
    assert built.manifest.model.pooling_mode == pooling_mode
    assert built.manifest.model.embedding_dim == dim
    vectors = open_provider(built.manifest, "onnx-fp32").encode(TEXTS)
    # Each sixth is another pooling, and the largest must not hide the others.
    for part in range(0, dim, 24 if dim == 24 else 32):
        piece = slice(part, part + 32)
        assert relative_difference(vectors[:, piece], built.reference[:, piece]) <= 1e-5


def save_matryoshka(folder: Path) -> Path:
    """Save a model of 32 components that cuts its vectors to 16, and names two dimensions below."""
    save("save_bert")(folder)
    path = folder / "config_sentence_transformers.json"
    document = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(document | {"truncate_dim": 16, "matryoshka_dims": [32, 8, 4]}), "utf-8")
    return folder


def test_vectors_are_cut_to_the_models_truncate_dim(tmp_path: Path) -> None:
    built = build_variant(tmp_path / "model", save_matryoshka, ("onnx-fp32", INT8_HERE))
    assert built.reference.shape == (len(TEXTS), 16)
    assert built.manifest.model.embedding_dim == 16
    assert not built.manifest.model.normalized
    texts = evaluation_sentences()
    reference = built.reference[: len(texts)]
    for artifact in built.manifest.artifacts:
        vectors = open_provider(built.manifest, artifact.id).encode(texts)
        if artifact.precision == "fp32":
            assert relative_difference(vectors, reference) <= 1e-5
        kept = artifact.quality.matryoshka
        assert kept is not None
        assert list(kept) == ["8", "4"]  # those below the vectors' own
        assert 1 > kept["8"] > kept["4"] > 0
        assert kept["8"] == pytest.approx(neighbour_overlap(vectors[:, :8], reference), abs=1e-6)


STATIC_TEXTS = [*TEXTS, "", " ", "\u200b", "word " * 1000]


def test_static_model_gives_the_reference_vectors_in_its_engines(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save("save_static")(tmp_path / "static")
    manifest = build(str(folder), tmp_path / "bundles", only=["torchscript-fp32", "onnx-fp32", "native-fp32"]).manifest
    model = SentenceTransformer(str(folder), device="cpu")
    reference = model.encode(STATIC_TEXTS)
    assert not reference[-4].any()  # the empty text has no token, because there are no special tokens
    assert (manifest.model.architecture, manifest.model.embedding_dim, manifest.model.normalized) == (
        *("StaticEmbedding", 32),
        True,
    )
    assert manifest.wordpiece is not None  # so the first vector needs no tokenizers package
    expected = [encoding.ids for encoding in model.tokenizer.encode_batch(STATIC_TEXTS, add_special_tokens=False)]
    assert open_tokenizer(manifest).tokenize(STATIC_TEXTS) == expected
    assert max(map(len, expected)) >= 1000  # no text is truncated
    assert row("static", manifest) in PAGE.read_text("utf-8").splitlines()
    for artifact in manifest.artifacts:
        provider = open_provider(manifest, artifact.id)
        assert relative_difference(provider.encode(STATIC_TEXTS), reference) <= 1e-5, artifact.id
        assert relative_difference(provider.encode([""]), reference[-4:-3]) <= 1e-5, artifact.id
        assert artifact.quality.cosine_min >= 0.999999


def test_static_model_has_nothing_to_quantize(tmp_path: Path) -> None:
    folder = save("save_static")(tmp_path / "static")
    model = load_model(resolve(str(folder)))
    assert find_obstacle(model) is None
    with pytest.raises(ExportError, match="native-int8: the model has no matrix product"):
        build(str(folder), tmp_path / "bundles", only=["native-int8"])
