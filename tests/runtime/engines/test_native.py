"""The native engine in the runtime: the same bits, typed errors, no threads left, and no slow imports."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import IncompatibleArtifact, Manifest, OptimizedEmbeddingLoader, SelfTestError, _native
from firstvec.bundle.integrity import open_verified
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.machine import native
from firstvec_build.quality import cosine, evaluation_sentences
from tests.conftest import Fresh
from tests.loads import artifact_of

ARTIFACTS = ("native-fp32", "native-int8")


def provider_of(root: Path, artifact: str, **options: Any) -> Any:
    return OptimizedEmbeddingLoader(str(root), "lazy", "cpu", artifact=artifact, **options).get_provider()


@pytest.mark.parametrize(
    ("artifact", "mean", "worst"), [("native-fp32", 0.9999999, 0.999999), ("native-int8", 0.9985, 0.985)]
)
def test_vectors_are_near_those_of_sentence_transformers(
    bundle: Path, reference_vectors: Any, artifact: str, mean: float, worst: float
) -> None:
    vectors = provider_of(bundle, artifact).encode(evaluation_sentences())
    cosines = cosine(vectors, reference_vectors)
    assert cosines.mean() >= mean
    assert cosines.min() >= worst
    if artifact == "native-fp32":
        assert np.abs(vectors - reference_vectors).max() <= 1e-5


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_a_text_has_the_same_bits_alone_and_in_any_batch(bundle: Path, artifact: str) -> None:
    provider = provider_of(bundle, artifact)
    texts = evaluation_sentences()
    together = provider.encode(texts)
    assert together[::7].tobytes() == np.stack([provider.embed_query(text) for text in texts[::7]]).tobytes()
    assert provider.encode(texts[::-1], batch_size=3)[::-1].tobytes() == together.tobytes()
    assert b"".join(row.tobytes() for row in provider.encode_iter(texts)) == together.tobytes()


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_every_instruction_set_computes_the_bits_of_the_self_test(
    bundle: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(bundle)
    for isa in _native.instruction_sets():
        monkeypatch.setenv("FIRSTVEC_NATIVE_ISA", isa)
        monkeypatch.setenv("FIRSTVEC_CACHE", os.devnull)  # nothing is remembered, so the self-test runs
        opened = open_artifact(verify_artifact(manifest, artifact_of(manifest, artifact)))
        assert opened.self_test == "passed now"
        assert opened.session.engine == f"native {_native.VERSION} ({isa})"


def test_one_wrong_bit_fails_the_self_test(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", os.devnull)
    manifest = Manifest.read(tiny_built)

    class WrongWeights:
        def __new__(cls, *arguments: Any) -> Any:
            self = super().__new__(cls)
            self.weights = _native.Weights(*arguments)
            self.isa, self.embedding_dim = self.weights.isa, self.weights.embedding_dim
            return self

        def run(self, rows: Any, threads: int) -> bytearray:
            result = self.weights.run(rows, threads)
            result[0] ^= 1
            return result

    class Module:
        Weights, VERSION = WrongWeights, _native.VERSION

    monkeypatch.setattr("firstvec.engines.native._native", Module)
    with pytest.raises(SelfTestError):
        open_artifact(verify_artifact(manifest, artifact_of(manifest, "native-int8")))


def test_a_file_that_is_no_weights_file_is_an_incompatible_artifact(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    verified = verify_artifact(manifest, artifact_of(manifest, "native-fp32"))
    tokenizer = open_verified(manifest.root, manifest.tokenizer)
    with pytest.raises(IncompatibleArtifact, match="native cannot load it: it is no weights file of firstvec"):
        open_artifact(verified.replace(files=(tokenizer,)), self_test=False)


def test_a_run_of_many_texts_leaves_no_thread_and_forked_children_go_on(tiny_built: Path) -> None:
    provider = provider_of(tiny_built, "native-int8", output="buffer")
    texts = ["a text of some words"] * 2000
    before = len(os.listdir("/proc/self/task"))
    expected = bytes(provider.encode(texts))
    assert len(os.listdir("/proc/self/task")) <= before
    child = os.fork()
    if child == 0:
        os._exit(0 if bytes(provider.encode(texts)) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_that_share_a_provider_get_the_same_bits(tiny_built: Path) -> None:
    provider = provider_of(tiny_built, "native-int8", output="buffer")
    texts = [f"text {number} " * (number % 30) for number in range(300)]
    expected = bytes(provider.encode(texts))
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(bytes(provider.encode(texts)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


IMPORTS = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader("all-MiniLM-L6-v2", sys.argv[1], output="buffer")
loader.start_loading()
assert len(loader.get_provider().embed_query("how do I reset my password?")) == 384
slow = {"numpy", "onnxruntime", "tokenizers", "ctypes", "threading", "functools", "collections", "importlib", "json"}
print(sorted(slow & set(sys.modules)), loader.report()["artifact"])
"""


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize(("strategy", "artifact"), [("quantized", "native-int8"), ("progressive", "native-fp32")])
def test_a_first_vector_imports_nothing_slow(fresh: Fresh, strategy: str, artifact: str) -> None:
    fresh(IMPORTS, strategy)  # the first load hashes the files
    assert fresh(IMPORTS, strategy).stdout == f"[] {artifact}\n"


CTRL_C = """
import sys, time
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader("all-MiniLM-L6-v2", "lazy", output="buffer").get_provider()
rows = [[101, *range(2000, 2200), 102]] * 100_000
print("ready", flush=True)
try:
    provider.session.run(rows)
except KeyboardInterrupt:
    print(time.monotonic())
"""


@pytest.mark.usefixtures("bundle")
def test_ctrl_c_ends_a_bulk_run_soon() -> None:
    import subprocess
    import sys

    with subprocess.Popen([sys.executable, "-c", CTRL_C], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        ended = float(process.stdout.readline())
    assert process.returncode == 0
    # Without the check between layers, the run takes minutes.
    assert ended - sent < 5.0


@pytest.mark.usefixtures("bundle")
def test_the_command_takes_a_forced_instruction_set(firstvec: Fresh) -> None:
    found = set()
    for isa in _native.instruction_sets():
        done = firstvec("encode", "--strategy", "quantized", "--artifact", "native-int8", "x", FIRSTVEC_NATIVE_ISA=isa)
        if isa == "plain":  # this is for tests of the engine only
            assert "isa: native is fast with" in done.stderr
        else:
            found.add(tuple(json.loads(done.stdout)["vectors"][0]))
    assert len(found) <= 1
    assert native.instruction_set() == _native.instruction_sets()[0]
