"""The encoder for MTEB: mteb's own evaluation of local tasks, and the figure of the STS Benchmark."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from firstvec.integrations.mteb import FirstvecEncoder
from tests.conftest import BUILT, HAS_ENGINE, REPOSITORY, Fresh, edit_manifest

pytestmark = pytest.mark.skipif(find_spec("mteb") is None, reason="mteb is not installed")

STS = REPOSITORY.parent / "shared" / "data" / "stsb" / "sts-test.csv"
"""The STS Benchmark, which lies beside the repository and is no part of it: see benchmarks/README.md."""

OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

_TASKS = """
import json, sys
import mteb
from datasets import Dataset, disable_progress_bars
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from firstvec.integrations.mteb import FirstvecEncoder

disable_progress_bars()

def describe(name, kind, main_score):
    return TaskMetadata(
        name=name, type=kind, main_score=main_score, description="a local task", category="t2t", modalities=["text"],
        dataset={"path": f"local/{name}", "revision": "1"}, eval_splits=["test"], eval_langs=["eng-Latn"]
    )
"""

_PROTOCOL = (
    _TASKS
    + """
import copy, itertools, pickle
import numpy as np
import torch
from mteb.models import EncoderProtocol, SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

folder, bundle = sys.argv[1:]
texts = ["A man eats.", "The weather is nice.", "", "x " * 200, "größe 日本"]
batches = DataLoader(Dataset.from_dict({"text": texts}), batch_size=2)
where = {"hf_split": "test", "hf_subset": "default"}

# Each prompt comes from the place from which mteb's own encoder takes it.
torch.set_num_threads(1)  # the tiny model has no work for more
model = SentenceTransformer(folder, device="cpu")
names = ["query", "document", "STS", "Retrieval-query", "STSBenchmark", "STSBenchmark-query"]
theirs = SentenceTransformerEncoderWrapper(model)
different = set()
for count in range(len(names) + 1):
    prompts = {name: f"{number} {name}: " for number, name in enumerate(names[:count])}
    model.prompts = theirs.model_prompts = prompts  # its constructor would check them for seconds
    ours = FirstvecEncoder(bundle, model_prompts=prompts)
    for name, kind in [("STSBenchmark", "STS"), ("SciFact", "Retrieval")]:
        for prompt_type in (None, PromptType.query, PromptType.document):
            options = {"task_metadata": describe(name, kind, "ndcg_at_10"), "prompt_type": prompt_type, **where}
            found = ours.encode(batches, batch_size=2, show_progress_bar=False, **options)
            expected = theirs.encode(batches, batch_size=2, show_progress_bar=False, **options)
            assert found.dtype == np.float32 and found.shape == (5, 32)
            np.testing.assert_allclose(found, expected, atol=2e-6)
            different.add(found[0].tobytes())
assert len(different) >= 7, len(different)

# The bundle's own prompts are the default.
ours = FirstvecEncoder(bundle)
assert isinstance(ours, EncoderProtocol)
options = {"task_metadata": describe("SciFact", "Retrieval", "ndcg_at_10"), **where}
vectors = ours.encode(batches, show_progress_bar=False, prompt_type=PromptType.query, **options)
assert ours.encode(DataLoader(Dataset.from_dict({"text": []})), show_progress_bar=False, **options).shape == (0, 32)
similarity = ours.similarity(vectors, vectors)
assert type(similarity) is torch.Tensor and similarity.shape == (5, 5)
np.testing.assert_allclose(ours.similarity_pairwise(vectors, vectors), np.ones(5), atol=1e-5)
for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
    np.testing.assert_array_equal(
        other.encode(batches, show_progress_bar=False, prompt_type=PromptType.query, **options), vectors
    )

meta = ours.mteb_model_meta
assert (meta.name, meta.revision) == ("local/tiny-bert", "no_revision_available"), (meta.name, meta.revision)
assert (meta.embed_dim, meta.max_tokens, meta.similarity_fn_name.value) == (32, 128, "cosine")
assert (meta.use_instructions, meta.modalities, meta.loader) == (False, ["text"], FirstvecEncoder)
assert meta.experiment_kwargs["artifact"].endswith("-fp32")
for artifact, framework in [("onnx-fp32", ["ONNX"]), ("torchscript-fp32", ["PyTorch"])]:
    assert FirstvecEncoder(bundle, artifact=artifact).mteb_model_meta.framework == framework
assert mteb.models.ModelMeta.model_validate(meta.model_dump()) == meta

short = FirstvecEncoder(bundle, embed_dim=8)
np.testing.assert_allclose(
    short.encode(batches, show_progress_bar=False, prompt_type=PromptType.query, **options), vectors[:, :8]
)
assert short.mteb_model_meta.embed_dim == short.mteb_model_meta.experiment_kwargs["embed_dim"] == 8

# `ModelMeta.load_model` gives an encoder of the same artifact.
meta = meta.model_copy(update={"name": bundle, "experiment_kwargs": {"artifact": "onnx-fp32"}})
loaded = meta.load_model(device="cpu")
assert type(loaded) is FirstvecEncoder and loaded.mteb_model_meta.name == bundle
np.testing.assert_allclose(
    loaded.encode(batches, show_progress_bar=False, prompt_type=PromptType.query, **options), vectors, atol=2e-6
)
"""
)

_BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", (REPOSITORY / "docs/mteb.md").read_text("utf-8"), re.DOTALL))
_EVALUATION = (
    "import os, sys; os.chdir(sys.argv[1])\n"
    + _BLOCKS["python"]
    + _TASKS
    + """
class LocalRetrieval(AbsTaskRetrieval):
    metadata = describe("LocalRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, **options):
        corpus = ["How to reset a password", "The weather in May", "Prices of flats in the capital"]
        queries = ["I forgot my password", "Will it rain in spring?"]
        self.dataset = {"default": {"test": RetrievalSplitData(
            corpus=Dataset.from_list([{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(corpus)]),
            queries=Dataset.from_list([{"id": f"q{i}", "text": text} for i, text in enumerate(queries)]),
            relevant_docs={"q0": {"d0": 1}, "q1": {"d1": 1}},
            top_ranked=None,
        )}}
        self.data_loaded = True

class Benchmark(AbsTaskSTS):
    metadata = describe("STSBenchmark", "STS", "cosine_spearman")

    def load_data(self, **options):
        with open(sys.argv[2], encoding="utf-8") as lines:
            rows = [line.rstrip("\\n").split("\\t") for line in lines]
        self.dataset = {"test": Dataset.from_dict({
            "score": [float(row[4]) for row in rows],
            "sentence1": [row[5] for row in rows],
            "sentence2": [row[6] for row in rows],
        })}
        self.data_loaded = True

tasks = [Tickets(), LocalRetrieval(), *([Benchmark()] if len(sys.argv) > 2 else [])]
scores = {}
for strategy in ("progressive", "quantized"):
    encoder = FirstvecEncoder("all-MiniLM-L6-v2", strategy=strategy)
    done = mteb.evaluate(encoder, tasks, cache=mteb.ResultCache("results"), show_progress_bar=False)
    scores[strategy] = {each.task_name: each.get_score() for each in done.task_results}
print(json.dumps(scores))
"""
)


def encode(encoder: FirstvecEncoder, batches: list[Any]) -> Any:
    """Encode without mteb: of the task, the encoder needs only the names."""

    class Task:
        name = "any"
        type = "Retrieval"

    return encoder.encode(batches, task_metadata=Task, hf_split="test", hf_subset="default")


def test_importing_and_constructing_imports_neither_mteb_nor_an_engine(bundle: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec.integrations.mteb import FirstvecEncoder
encoder = FirstvecEncoder("no/such-model")
heavy = {"mteb", "numpy", "torch", "onnxruntime", "tokenizers", "datasets", "sentence_transformers"}
assert not heavy & {*sys.modules}, heavy & {*sys.modules}
assert not [name for name in sys.modules if name.startswith("firstvec.engines.") and name != "firstvec.engines.table"]
encoder = FirstvecEncoder("all-MiniLM-L6-v2")
class Task:
    name = type = "any"
encoder.encode([{"text": ["one", "two"]}], task_metadata=Task, hf_split="", hf_subset="")
print(sorted(heavy & {*sys.modules} - {"onnxruntime", "tokenizers"}))
"""
    assert fresh(code).stdout == "['numpy']\n"


@pytest.mark.skipif(bool(BUILT), reason="the bundle was built from another model")
def test_vectors_and_prompts_are_those_of_mtebs_own_encoder(
    tiny_model: Path, tiny_built: Path, tmp_path: Path, fresh: Fresh
) -> None:
    done = fresh(
        _PROTOCOL, tiny_model, tiny_built, HF_HOME=str(tmp_path), MTEB_CACHE=str(tmp_path), check=False, **OFFLINE
    )
    assert done.returncode == 0, done.stderr


def test_mteb_evaluates_local_tasks_and_the_sts_benchmark(bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    """The program of docs/mteb.md comes first, and prints what the page says."""
    data = [STS] if STS.exists() else []
    environment = OFFLINE | {"HF_HOME": str(tmp_path), "MTEB_CACHE": str(tmp_path)}
    done = fresh(_EVALUATION, tmp_path, *data, check=False, **environment)
    assert done.returncode == 0, done.stderr
    printed, _, last = done.stdout.strip().rpartition("\n")
    if HAS_ENGINE:
        assert printed == _BLOCKS["text"].strip()
    scores = json.loads(last)
    for each in scores.values():
        assert each["Tickets"] == pytest.approx(1.0, abs=0.21)  # four pairs: one exchange of ranks costs 0.2
        assert each["LocalRetrieval"] == 1.0
    results = sorted(path.parent.name for path in (tmp_path / "results").rglob("LocalRetrieval.json"))
    assert len(results) == 2, "mteb keeps the results of each artifact apart"
    assert ["fp32" in name for name in results].count(True) == 1
    if not data:
        pytest.skip("the STS Benchmark does not lie beside the repository")
    assert 100 * scores["progressive"]["STSBenchmark"] == pytest.approx(82.03, abs=0.02)
    assert 100 * scores["quantized"]["STSBenchmark"] == pytest.approx(82.03, abs=0.5)


# Bad input


def test_bad_texts(tiny_built: Path) -> None:
    from firstvec import InputError

    encoder = FirstvecEncoder(str(tiny_built))
    for batches, message in (
        ([{"text": ["a", None]}], "text 1: is NoneType, not str"),
        ([{"text": ["a"]}, {"text": [3]}], "text 1: is int, not str"),
        ([{"image": [b""], "id": [1]}], "a batch has image, id and no text, and the model embeds texts only"),
    ):
        with pytest.raises(InputError, match=message):
            encode(encoder, batches)
    assert encode(encoder, []).shape == (0, 32)
    assert encode(encoder, [{"text": [""]}, {"text": []}]).shape == (1, 32)


def test_bad_arguments(tiny_bundle: Path) -> None:
    from firstvec import BundleNotFound, InputError

    with pytest.raises(InputError, match="unknown strategy"):
        FirstvecEncoder(strategy="error")
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        FirstvecEncoder(wrong=1)  # type: ignore[call-arg]
    encoder = FirstvecEncoder("no/such-model")
    for call in (lambda: encode(encoder, []), lambda: encoder.mteb_model_meta):
        with pytest.raises(BundleNotFound, match="no/such-model"):
            call()
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="1110a243"))
    assert encode(FirstvecEncoder(str(tiny_bundle), "1110a243"), []).shape == (0, 32)
    for revision in ("main", "2220a243"):
        with pytest.raises(InputError, match=f"revision '{revision}': the bundle was built from revision '1110a243'"):
            encode(FirstvecEncoder(str(tiny_bundle), revision), [])


def test_a_bundle_that_was_changed_is_an_error(tiny_bundle: Path) -> None:
    from firstvec import FirstvecError

    with open(tiny_bundle / "onnx" / "model.onnx", "ab") as stream:
        stream.write(b"\0")
    encoder = FirstvecEncoder(str(tiny_bundle), artifact="onnx-fp32")
    with pytest.raises(FirstvecError, match=r"model\.onnx is not the file that was built"):
        encode(encoder, [{"text": ["a"]}])
