"""What firstvec says of its own engine: its version, its instruction set, and that the engine may be missing."""

from __future__ import annotations

import json
import sys

import pytest

from firstvec import InputError, ResourceProfile, _native
from firstvec.machine import native
from tests.conftest import Fresh


def test_the_engine_is_installed_and_names_its_instruction_sets() -> None:
    assert native.module() is _native
    assert native.version() == _native.VERSION == ResourceProfile.detect().engine_version("native")
    usable = _native.instruction_sets()
    assert usable[-1] == "plain"
    assert native.instruction_set() == usable[0] == ResourceProfile.detect().native_isa


def test_a_variable_chooses_among_the_instruction_sets_of_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTVEC_NATIVE_ISA", "plain")
    assert native.instruction_set() == "plain"
    monkeypatch.setenv("FIRSTVEC_NATIVE_ISA", "sse2")
    with pytest.raises(InputError, match=r"FIRSTVEC_NATIVE_ISA is 'sse2': this processor can use .*plain"):
        native.instruction_set()


def test_an_install_without_the_module_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "firstvec._native", None)
    monkeypatch.delattr("firstvec._native")
    assert (native.module(), native.version(), native.instruction_set()) == (None, None, None)


WITHOUT = """
import json, sys
sys.modules["firstvec._native"] = None
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader("all-MiniLM-L6-v2", sys.argv[1], output="list")
loader.start_loading()
vector = loader.get_provider().embed_query("how do I reset my password?")
rejected = {artifact.id: reason for artifact, reason in loader.choose().rejected}
print(json.dumps([loader.report()["artifact"], rejected, len(vector)]))
"""


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize(("strategy", "prefix"), [("lazy", "onnx-fp32"), ("quantized", "onnx-int8-")])
def test_an_install_without_the_module_takes_onnxruntime_and_says_why(fresh: Fresh, strategy: str, prefix: str) -> None:
    artifact, rejected, dim = json.loads(fresh(WITHOUT, strategy).stdout)
    assert artifact.startswith(prefix)
    assert dim == 384
    own = "native-fp32" if strategy == "lazy" else "native-int8"
    assert rejected[own] == "native: not installed"
