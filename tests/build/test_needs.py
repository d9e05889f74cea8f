"""What a build says that it needs, and what happens where the memory will not suffice."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from firstvec.errors import BuildError
from firstvec_build import needs
from firstvec_build.needs import Needs, Shape, check_memory, estimate, read_shape
from firstvec_build.pipeline import build
from firstvec_build.recipes import RECIPES
from firstvec_build.source import resolve
from tests.conftest import Fresh

MINILM = Shape(
    parameters=22_713_728,
    hidden=384,
    layers=6,
    heads=12,
    intermediate=1536,
    model_type="bert",
    lengths=(256, *(52,) * 319),
)


def test_shape_is_that_of_the_model(tiny_model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    texts = ["how do I reset my password?", "word " * 500]
    shape = read_shape(resolve(str(tiny_model)), texts)
    weights = load_file(tiny_model / "model.safetensors")
    assert shape.parameters == sum(tensor.numel() for tensor in weights.values() if isinstance(tensor, torch.Tensor))
    assert (shape.hidden, shape.layers, shape.heads, shape.intermediate) == (32, 2, 4, 64)
    assert 8 < shape.lengths[0] < 30
    assert shape.lengths[1] == 128  # max_seq_length


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dim": 48, "n_layers": 3, "n_heads": 6, "hidden_dim": 96}, (48, 3, 6, 96)),  # DistilBERT
        ({"d_model": 48, "num_layers": 3, "num_heads": 6, "d_ff": 96}, (48, 3, 6, 96)),  # T5
        ({"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}, (48, 3, 6, 192)),
        ({}, (0, 0, 1, 0)),
    ],
    ids=["distilbert", "t5", "without an intermediate size", "a table of embeddings"],
)
def test_every_familys_words_are_known(
    config: dict[str, int], expected: tuple[int, ...], tiny_model: Path, tmp_path: Path
) -> None:
    source, folder = resolve(str(tiny_model)), tmp_path
    (folder / "0_Transformer").mkdir()
    (folder / "modules.json").write_text(json.dumps([{"path": "0_Transformer"}]), "utf-8")
    (folder / "0_Transformer" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 9}), "utf-8")
    (folder / "pytorch_model.bin").write_bytes(bytes(4000))
    shape = read_shape(replace(source, path=folder), ["a text without a tokenizer beside it", "a"])
    assert (shape.hidden, shape.layers, shape.heads, shape.intermediate) == expected
    assert shape.parameters == 1000
    assert shape.lengths == (9, 2)


def test_more_of_anything_needs_more() -> None:
    base = estimate(MINILM, RECIPES)
    for change in (
        {"parameters": 2 * MINILM.parameters},
        {"hidden": 768},
        {"layers": 12},
        {"heads": 24},
        {"intermediate": 3072},
        {"lengths": (512, *MINILM.lengths)},
    ):
        more = estimate(replace(MINILM, **change), RECIPES)  # type: ignore[arg-type]
        assert more.memory > base.memory, change
        assert more.seconds > base.seconds or set(change) & {"parameters", "heads"}, change
    fewer = estimate(MINILM, ["onnx-fp32"])
    assert fewer.memory < base.memory
    assert fewer.seconds < base.seconds


def test_the_longest_texts_count_by_the_square_of_their_tokens() -> None:
    long, longer = (estimate(replace(MINILM, lengths=(tokens,)), ["onnx-fp32"]).memory for tokens in (4096, 8192))
    # One text is in a batch then: 12 heads of 8192² scores.
    assert longer - long > 3 * 4 * 12 * (8192**2 - 4096**2)


def test_needs_are_spelled_in_words() -> None:
    assert str(Needs(2_340_000_000, 82.4)) == "2.3 GB of memory and 82 s of processor time"
    assert str(Needs(12_340_000_000, 600)) == "12.3 GB of memory and 10 minutes of processor time"


def test_too_little_memory_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "available_memory", lambda: 1_500_000_000)
    check_memory(Needs(1_400_000_000, 1))
    with pytest.raises(
        BuildError, match=r"needs about 1\.6 GB of memory, and 1\.5 GB are available .* --ignore-memory"
    ):
        check_memory(Needs(1_600_000_000, 1))


def test_the_build_reports_its_needs_and_stops_before_it_loads(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "available_memory", lambda: 300_000_000)
    reported: list[Needs] = []
    stages: list[str] = []
    with pytest.raises(BuildError, match="GB are available"):
        build(
            str(tiny_model),
            tmp_path / "bundles",
            report_needs=reported.append,
            report_stage=lambda stage, _number, _count: stages.append(stage),
        )
    assert reported[0].memory > 400_000_000
    assert stages == ["fetching the model"]
    assert [path for path in (tmp_path / "bundles").rglob("*") if path.is_file() and path.name != ".lock"] == []


UNDER_A_LIMIT = """
import resource, sys
from firstvec.machine.limits import address_space_left
from firstvec_build.pipeline import build
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20),) * 2)
try:
    build(sys.argv[1], sys.argv[2], only=["onnx-fp32"])
except Exception as error:
    print(type(error).__name__, error)
print("torch" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_a_build_under_a_real_limit_ends_with_the_error(tiny_model: Path, tmp_path: Path, fresh: Fresh) -> None:
    error, has_torch = fresh(UNDER_A_LIMIT, tiny_model, tmp_path / "bundles").stdout.splitlines()
    assert error.startswith("BuildError the build needs about 0.")
    assert "are available" in error
    assert has_torch == "False"
