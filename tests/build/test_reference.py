"""The fp32 reference: which models are refused, and what the bundle takes from the model's folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from firstvec.errors import ExportError, SourceError
from firstvec_build import reference, source


def test_folder_that_sentence_transformers_cannot_load_is_a_source_error(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "modules.json").write_text("[]")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "broken" / "config_sentence_transformers.json").write_text("no JSON")
    with pytest.raises(SourceError, match="broken: sentence-transformers cannot load the model"):
        reference.load_model(source.resolve(str(tmp_path / "broken")))


def test_tokenizer_without_a_fast_form_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.delattr(transformers.PreTrainedTokenizerFast, "backend_tokenizer")
    with pytest.raises(ExportError, match="unsupported tokenizer TokenizersBackend: it has no fast form"):
        reference.load_model(source.resolve(str(tiny_model)))


def test_model_without_a_maximal_length_is_refused(tiny_model: Path, tiny_encoder: Any) -> None:
    encoder = copy.deepcopy(tiny_encoder)
    encoder.max_seq_length = None
    with pytest.raises(ExportError, match="tiny-bert: the model states no max_seq_length"):
        reference.describe_model(encoder, source.resolve(str(tiny_model)))


def test_model_is_described_with_its_source_and_its_prompts(tiny_model: Path, tiny_encoder: Any) -> None:
    encoder = copy.deepcopy(tiny_encoder)
    encoder.prompts = {"query": "query: "}
    encoder.default_prompt_name = "query"
    origin = source.resolve(str(tiny_model))
    model = reference.describe_model(encoder, origin)
    assert (model.name, model.source, model.source_sha256) == ("tiny-bert", "folder", origin.sha256)
    assert (model.architecture, model.embedding_dim, model.max_seq_length) == ("BertModel", 32, 128)
    assert (model.pooling_mode, model.normalized, model.pad_token_id) == ("mean", True, 0)
    assert (model.prompts["query"], model.default_prompt_name) == ("query: ", "query")


def test_tokenizer_truncates_and_never_pads_and_the_models_own_stays_as_it_is(tiny_encoder: Any) -> None:
    own = tiny_encoder.tokenizer.backend_tokenizer
    own.enable_padding(length=200)
    try:
        document = json.loads(reference.make_tokenizer_json(tiny_encoder))
        assert document["padding"] is None
        assert document["truncation"]["max_length"] == 128
        assert own.padding["length"] == 200
    finally:
        own.no_padding()


def test_support_files_are_configuration_and_the_weights_of_later_modules(tmp_path: Path) -> None:
    for name in (
        *("modules.json", "config.json", "model.safetensors", "README.md", "onnx/model.onnx"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}" if path.suffix == ".json" else "some content")
    found = reference.find_support_files(source.resolve(str(tmp_path)))
    assert [path.as_posix() for path in found] == [
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "config.json", "modules.json")
    ]
