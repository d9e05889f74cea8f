"""Models of several architectures, built and run by the runtime, against sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from firstvec import OptimizedEmbeddingLoader, ResourceProfile
from firstvec.bundle.manifest import Manifest
from firstvec.errors import ExportError
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.loading.session_in_use import SessionInUse
from firstvec.provider import EmbeddingProvider
from firstvec.selection import cannot_run
from firstvec.text.tokenizer import open_tokenizer
from firstvec_build.exporters.native_weights import find_obstacle
from firstvec_build.pipeline import build
from firstvec_build.quality import cosine, evaluation_sentences
from firstvec_build.recipes import RECIPES
from tests.build.models_page import FAMILIES, PAGE, row

# The last texts are not among the evaluation sentences, and tokenizers treat them specially.
TEXTS = [
    *evaluation_sentences(),
    *("  led and followed by blanks \n", "tab\tand\u00a0no-break space", "[SEP] and </s> as text", "\x00", "\u200b"),
    "ﬁ ligature, e\u0301 decomposed, \U0001d4cd beyond the BMP",
]


@dataclass(frozen=True)
class Built:
    """A model, its bundle, and the vectors that sentence-transformers computes of `TEXTS`."""

    folder: Path
    manifest: Manifest
    model: Any
    reference: npt.NDArray[np.float32]


def save_with_dense(folder: Path) -> Path:
    """BERT, then a Dense layer that changes the dimension, then normalization."""
    return save_variant(folder, lambda modules, kinds: [*modules[:2], kinds.Dense(32, 16), *modules[2:]])


def save_pooled(mode: str | tuple[str, ...]) -> Callable[[Path], Path]:
    return lambda folder: save_variant(
        folder, lambda modules, kinds: [modules[0], kinds.Pooling(32, pooling_mode=mode), *modules[2:]]
    )


def save_variant(folder: Path, change: Callable[[list[Any], Any], list[Any]]) -> Path:
    """Save the tiny BERT with other modules."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as kinds

    from tests.tiny import save_bert

    base = SentenceTransformer(str(save_bert(folder.with_name(f"{folder.name}-base"))), device="cpu")
    torch.manual_seed(21)
    SentenceTransformer(modules=change(list(base), kinds), device="cpu").save(str(folder), create_model_card=False)
    return folder


def save(name: str) -> Callable[[Path], Path]:
    """Return the function of that name in tests.tiny. It is imported late, because tests.tiny imports the toolchain."""

    def call(folder: Path) -> Path:
        import tests.tiny

        return Path(getattr(tests.tiny, name)(folder))

    return call


def save_bert_cls(folder: Path) -> Path:
    from tests.tiny import save_bert

    return save_bert(folder, pooling_mode="cls", normalize=False)


MODELS: dict[str, Callable[[Path], Path]] = {
    "bert": save("save_bert"),
    "bert-cls-unnormalized": save_bert_cls,
    "distilbert-cls-unnormalized": save("save_distilbert"),
    "mpnet": save("save_mpnet"),
    "roberta-byte-level": save("save_roberta"),
    "bert-dense": save_with_dense,
    "bert-cls-and-max": save_pooled(("cls", "max")),
    "bert-lasttoken": save_pooled("lasttoken"),
}


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    from sentence_transformers import SentenceTransformer

    from tests.tiny import ANY_INT8

    place = tmp_path_factory.mktemp(request.param)
    folder = MODELS[request.param](place / request.param)
    manifest = build(str(folder), place / "bundles", thresholds=ANY_INT8).manifest
    model = SentenceTransformer(str(folder), device="cpu")
    return Built(folder, manifest, model, model.encode(TEXTS))


def open_provider(manifest: Manifest, artifact_id: str) -> EmbeddingProvider:
    """Open the artifact in the runtime, or skip the test if this machine cannot run the artifact."""
    artifact = next(artifact for artifact in manifest.artifacts if artifact.id == artifact_id)
    if reason := cannot_run(artifact, ResourceProfile.detect()):
        pytest.skip(reason)
    verified = verify_artifact(manifest, artifact)

    def open_session() -> Any:
        return open_artifact(verified).session

    tokenizer = open_tokenizer(manifest.replace(wordpiece=None))
    sessions = SessionInUse(artifact.id, open_session(), open_session)
    return EmbeddingProvider(manifest, artifact, "cpu", tokenizer, sessions)


def relative_difference(vectors: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """The largest difference of a component, relative to the length of the reference vector."""
    lengths = np.maximum(np.linalg.norm(reference, axis=1, keepdims=True), 1e-12)
    return float((np.abs(vectors - reference) / lengths).max())


def test_random_model_gives_different_vectors_to_different_texts(built: Built) -> None:
    # If all vectors were alike, the comparisons below would prove nothing.
    unit = built.reference / np.linalg.norm(built.reference, axis=1, keepdims=True)
    others = ~np.eye(len(unit), dtype=bool)
    assert (unit @ unit.T)[others].mean() < 0.95


@pytest.mark.parametrize("artifact_id", [name for name, recipe in RECIPES.items() if not recipe.on_request])
def test_every_artifact_gives_the_reference_vectors(built: Built, artifact_id: str) -> None:
    if reason := (built.manifest.left_out or {}).get(artifact_id):
        assert reason == find_obstacle(built.model)
        pytest.skip(reason)
    provider = open_provider(built.manifest, artifact_id)
    vectors = provider.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == built.reference.shape
    if provider.artifact.precision == "fp32":
        assert relative_difference(vectors, built.reference) <= 1e-5
    else:
        assert cosine(vectors, built.reference).min() >= 0.97


@pytest.mark.parametrize(("strategy", "precision"), [("lazy", "fp32"), ("cached", "fp32"), ("quantized", "int8")])
def test_loader_gives_the_reference_vectors(built: Built, strategy: str, precision: str) -> None:
    loader = OptimizedEmbeddingLoader(built.manifest.root, strategy, device="cpu")
    loader.start_loading()
    provider = loader.get_provider()
    texts = TEXTS[::7]
    one_by_one = np.stack([provider.embed_query(text) for text in texts])
    assert provider.artifact.precision == precision
    assert provider.embedding_dim == loader.get_embedding_dim_fast() == built.reference.shape[1]
    if precision == "fp32":
        assert relative_difference(one_by_one, built.reference[::7]) <= 1e-5
    else:
        assert cosine(one_by_one, built.reference[::7]).min() >= 0.97


def test_tokens_are_those_of_the_reference(built: Built) -> None:
    provider = open_provider(built.manifest, "onnx-fp32")
    expected = built.model.tokenizer(TEXTS, truncation=True, max_length=built.model.max_seq_length)["input_ids"]
    assert provider.count_tokens(TEXTS) == [len(ids) for ids in expected]
    assert max(map(len, expected)) == built.model.max_seq_length == 128  # some are truncated
    assert open_tokenizer(built.manifest.replace(wordpiece=None)).tokenize(TEXTS) == expected


def test_page_has_the_row_that_is_found(built: Built) -> None:
    if (name := built.folder.name) in FAMILIES:
        assert row(name, built.manifest) in PAGE.read_text("utf-8").splitlines()


def test_manifest_describes_the_model(built: Built) -> None:
    model = built.manifest.model
    assert model.architecture == type(built.model[0].auto_model).__name__
    assert model.embedding_dim == built.reference.shape[1]
    assert model.normalized == bool(np.allclose(np.linalg.norm(built.reference, axis=1), 1, atol=1e-4))
    assert model.pad_token_id == built.model.tokenizer.pad_token_id


def bag_of_words(_modules: list[Any], kinds: Any) -> list[Any]:
    return [kinds.BoW(vocab=["some", "words"]), kinds.Dense(2, 8)]


def convolution(modules: list[Any], kinds: Any) -> list[Any]:
    return [modules[0], kinds.CNN(32, 8), kinds.Pooling(24)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (bag_of_words, "BoW → Dense"),
        (convolution, "Transformer → CNN → Pooling"),
    ],
)
def test_other_modules_are_refused_by_name(
    change: Callable[[list[Any], Any], list[Any]], named: str, tmp_path: Path
) -> None:
    folder = save_variant(tmp_path / "model", change)
    with pytest.raises(ExportError, match=f"model: unsupported architecture {named}: the first modules must be"):
        build(str(folder), tmp_path / "bundles")
    assert not list((tmp_path / "bundles").iterdir())


def test_pooling_that_leaves_out_the_prompt_is_refused(tmp_path: Path) -> None:
    folder = save_variant(
        tmp_path / "model", lambda modules, kinds: [modules[0], kinds.Pooling(32, include_prompt=False)]
    )
    with pytest.raises(ExportError, match="include_prompt=False"):
        build(str(folder), tmp_path / "bundles")
    assert not list((tmp_path / "bundles").iterdir())
