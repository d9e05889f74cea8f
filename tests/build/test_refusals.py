"""What a build refuses before it begins: each error says what is wrong, where, and what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec.bundle.manifest import Manifest, Model
from firstvec.errors import BuildError, ExportError, InputError, SourceError
from firstvec_build import reference, source
from firstvec_build.pipeline import build
from tests.build.test_architectures import TEXTS, open_provider, relative_difference

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 90868376\n"


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a function that changes the JSON file of that name in a model's folder."""

    def apply(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps(change(document)), "utf-8")

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def set_module(number: int, kind: str) -> Callable[[Path], None]:
    return edit("modules.json", lambda modules: [*modules[:number], modules[number] | {"type": kind}])


def write_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def leave_a_shard_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    edit("model.safetensors.index.json", lambda _: {"weight_map": shards})(folder)


def need_code(folder: Path) -> None:
    classes = {"AutoConfig": "configuration_own.Config", "AutoModel": "someone/code--modeling_own.Model"}
    edit("config.json", lambda config: config | {"model_type": "own", "auto_map": classes})(folder)


def describe(folder: Path) -> Model:
    origin = source.resolve(str(folder))
    return reference.describe_model(reference.load_model(origin), origin)


@pytest.mark.parametrize(
    ("damage", "kind", "message", "advice"),
    [
        (set_module(1, "sentence_transformers.models.Unknown"), SourceError, "Unknown", "build with a version of"),
        (
            edit("1_Pooling/config.json", lambda c: c | {"pooling_mode": "median"}),
            SourceError,
            "'median'",
            "Valid pooling",
        ),
        (
            set_module(1, "own_pooling.Pooling"),
            SourceError,
            r"code of its own \(own_pooling\.py\)",
            "--trust-remote-code",
        ),
        (need_code, SourceError, r"\(configuration_own\.py, someone/code: modeling_own\.py\)", "--trust-remote-code"),
        (remove("model.safetensors"), SourceError, "holds no weights", "download the model again"),
        (write_pointer, SourceError, "is a pointer of Git LFS", "git lfs pull"),
        (cut_off, SourceError, "model.safetensors: is cut off: it has", "download the model again"),
        (leave_a_shard_out, SourceError, "model-00002-of-00002.safetensors: is missing", "download the model again"),
        (remove("config.json"), SourceError, "cannot load the model", "check that the folder holds every file"),
        (
            remove("1_Pooling/config.json"),
            SourceError,
            "cannot load the model",
            "check that the folder holds every file",
        ),
        (remove("tokenizer.json"), BuildError, "tokenizer", ""),
        (
            edit("sentence_bert_config.json", lambda c: c | {"max_seq_length": 512}),
            ExportError,
            "is 512, .* 128 tokens only",
            "write at most 128",
        ),
    ],
    ids=[
        *("unknown-module", "unknown-pooling", "module-with-code", "model-with-code", "no-weights", "lfs-pointer"),
        *("cut-off", "missing-shard", "no-config", "no-pooling-config", "no-tokenizer", "too-long"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_with_what_to_do(
    damage: Callable[[Path], None], kind: type[BuildError], message: str, advice: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(folder)
    with pytest.raises(kind, match=message) as caught:
        describe(folder)
    assert re.search(advice, str(caught.value))
    assert str(folder) in str(caught.value) or str(caught.value).startswith("model: ")


def plain(model: Path, folder: Path) -> Path:
    """Copy a model as a plain transformers folder."""
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    folder.mkdir()
    for name in names:
        shutil.copyfile(model / name, folder / name)
    return folder


def test_a_plain_transformers_model_is_refused_with_the_option_to_give(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no modules\.json.*library transformers.*build it with --pooling MODE"):
        source.resolve(str(plain(tiny_model, tmp_path / "plain")))


def test_pooling_is_one_that_sentence_transformers_has(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    assert sorted(Pooling.POOLING_MODES) == list(source.POOLINGS)
    with pytest.raises(InputError, match="unknown pooling 'median': use one of cls, lasttoken"):
        source.resolve(str(plain(tiny_model, tmp_path / "plain")), pooling="median")


def test_pooling_is_refused_for_a_model_that_has_its_own(tiny_model: Path) -> None:
    with pytest.raises(SourceError, match=r"names its own modules and pooling .* leave --pooling out"):
        source.resolve(str(tiny_model), pooling="cls")


def test_a_plain_transformers_model_is_built_with_the_pooling_that_is_given(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = plain(tiny_model, tmp_path / "plain")
    manifest = build(str(folder), tmp_path / "bundles", only=["onnx-fp32"], pooling="max").manifest
    assert manifest.model.pooling_mode == "max"
    assert not manifest.model.normalized
    reference_model = SentenceTransformer(
        modules=[Transformer(str(folder)), Pooling(32, pooling_mode="max")], device="cpu"
    )
    vectors = open_provider(manifest, "onnx-fp32").encode(TEXTS[::10])
    assert relative_difference(vectors, reference_model.encode(TEXTS[::10])) <= 1e-5
    # The bundle has what sentence-transformers needs to load its graph.
    root = Path(manifest.root)
    assert [Path(module["path"]) for module in json.loads((root / "modules.json").read_text("utf-8"))] == [
        Path(),
        Path("1_Pooling"),
    ]
    assert json.loads((root / "1_Pooling" / "config.json").read_text("utf-8"))["pooling_mode"] == "max"
    assert {"modules.json", "1_Pooling/config.json"} <= {file.path for file in manifest.support_files}
    assert build(str(folder), tmp_path / "bundles", only=["onnx-fp32"], pooling="max").rebuilt is False


OWN_CODE = """
from sentence_transformers.base.modules.module import Module


class Double(Module):
    def forward(self, features, **options):
        features["sentence_embedding"] = 2 * features["sentence_embedding"]
        return features

    def save(self, path, *options, **more):
        pass

    @classmethod
    def load(cls, *options, **more):
        return cls()
"""


def test_code_beside_the_model_is_run_by_the_build_if_asked_and_not_in_the_bundle(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "own.py").write_text(OWN_CODE, "utf-8")
    module = {"idx": 3, "name": "3", "path": "", "type": "own.Double"}
    edit("modules.json", lambda modules: [*modules, module])(folder)
    with pytest.raises(SourceError, match=r"code of its own \(own\.py\)"):
        build(str(folder), tmp_path / "bundles", only=["onnx-fp32"])
    manifest: Manifest = build(str(folder), tmp_path / "bundles", only=["onnx-fp32"], trust_remote_code=True).manifest
    vectors = open_provider(manifest, "onnx-fp32").encode(TEXTS[::10])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 2, atol=1e-5)
    assert not list(Path(manifest.root).rglob("*.py"))
