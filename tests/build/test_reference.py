"""The fp32 reference: which models are refused, and what the bundle takes from the model's folder."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
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
        *("modules.json", "config.json", "model.safetensors", "README.md", "LICENSE", "onnx/model.onnx"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}" if path.suffix == ".json" else "some content")
    found = reference.find_support_files(source.resolve(str(tmp_path)))
    assert [path.as_posix() for path in found] == [
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
        *("LICENSE", "config.json", "modules.json"),
    ]


# Where other libraries truncate

LONG = "How do I reset the password of my account? " * 40


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    """Return a function that changes keys of the JSON file of that name in a model's folder."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")

    return apply


def state_another_length(folder: Path) -> None:
    """State 512 tokens for transformers, 100 for fastembed, and 64 for sentence-transformers, which is the model's."""
    edit("tokenizer_config.json", model_max_length=512, max_length=100)(folder)
    edit("sentence_bert_config.json", max_seq_length=64)(folder)


def state_it_under_an_old_name(folder: Path) -> None:
    edit("tokenizer_config.json", model_max_length=512)(folder)
    (folder / "sentence_bert_config.json").unlink()
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 64, "do_lower_case": true}', "utf-8")


def state_it_in_the_tokenizers_file_only(folder: Path) -> None:
    edit("tokenizer_config.json", model_max_length=64)(folder)
    (folder / "sentence_bert_config.json").unlink()


def have_no_tokenizer_config(folder: Path) -> None:
    edit("sentence_bert_config.json", max_seq_length=64)(folder)
    (folder / "tokenizer_config.json").unlink()


def have_no_modules(folder: Path) -> None:
    """Leave a plain transformers model, which states its length in its tokenizer's file."""
    edit("tokenizer_config.json", model_max_length=64)(folder)
    for path in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / path).unlink()


def write_bundle_files(model: Path, folder: Path, pooling: str | None = None) -> list[Path]:
    """Write the files that a bundle takes from a model, and return the paths of the support files."""
    origin = source.resolve(str(model), pooling=pooling)
    encoder = reference.load_model(origin)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(reference.make_tokenizer_json(encoder), "utf-8")
    return reference.write_support_files(encoder, origin, folder)


@pytest.mark.parametrize(
    "change",
    [
        *(state_another_length, state_it_under_an_old_name, state_it_in_the_tokenizers_file_only),
        *(have_no_tokenizer_config, have_no_modules),
    ],
)
def test_other_libraries_truncate_where_the_model_does(
    change: Callable[[Path], None], tiny_model: Path, tmp_path: Path
) -> None:
    import tokenizers
    import transformers
    from sentence_transformers import SentenceTransformer

    model, folder = Path(shutil.copytree(tiny_model, tmp_path / "model")), tmp_path / "bundle"
    change(model)
    paths = write_bundle_files(model, folder, "mean" if change is have_no_modules else None)
    assert {path for path in paths if (folder / path).is_file()} == {*paths}
    expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(LONG).ids
    assert len(expected) == 64
    assert transformers.AutoTokenizer.from_pretrained(folder)(LONG, truncation=True)["input_ids"] == expected
    stated = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    assert {stated["model_max_length"], stated.get("max_length", 64)} == {64}  # what fastembed reads
    shutil.copyfile(model / "model.safetensors", folder / "model.safetensors")
    found = SentenceTransformer(str(folder), device="cpu")
    assert found.max_seq_length == 64
    assert reference.tokenize(found, [LONG]) == [expected]


def test_files_that_state_the_models_length_keep_their_bytes(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    edit("sentence_bert_config.json", max_seq_length=128)(model)
    for path in write_bundle_files(model, tmp_path / "bundle"):
        assert (tmp_path / "bundle" / path).read_bytes() == (model / path).read_bytes(), path


def test_length_of_a_table_of_embeddings_is_stated_if_there_is_a_place_for_it(tmp_path: Path) -> None:
    from tests.tiny import save_static

    model = save_static(tmp_path / "static")
    assert Path("tokenizer_config.json") not in write_bundle_files(model, tmp_path / "without")
    (model / "tokenizer_config.json").write_text('{"model_max_length": 512, "pad_token": "[PAD]"}', "utf-8")
    assert Path("tokenizer_config.json") in write_bundle_files(model, tmp_path / "with")
    stated = json.loads((tmp_path / "with" / "tokenizer_config.json").read_text("utf-8"))
    assert stated == {"model_max_length": 65536, "pad_token": "[PAD]"}
    for broken in ("{", "[]"):
        (model / "tokenizer_config.json").write_text(broken, "utf-8")
        with pytest.raises(SourceError, match=r"static/tokenizer_config\.json: is no JSON object: .*repair the file"):
            write_bundle_files(model, tmp_path / f"broken{len(broken)}")


def test_tokenizer_that_truncates_on_the_left_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from tests.tiny import save_static

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    edit("tokenizer_config.json", truncation_side="left")(model)
    static = save_static(tmp_path / "static")
    [path] = static.rglob("tokenizer.json")
    truncation = {"direction": "Left", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    edit(path.relative_to(static).as_posix(), truncation=truncation)(static)
    for folder in (model, static):
        origin = source.resolve(str(folder))
        with pytest.raises(ExportError, match=f"{folder.name}: the tokenizer cuts the beg.* truncate on the right"):
            reference.describe_model(reference.load_model(origin), origin)
