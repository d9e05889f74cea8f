"""Attention masks while a model is traced."""

from __future__ import annotations

import pytest
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from firstvec_build.exporters.masks import traceable_masks


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_no_mask_is_made_by_vmap_and_the_function_comes_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []

    def make(*_sizes: object, **options: object) -> str:
        seen.append(options)
        return "a mask"

    before = ALL_MASK_ATTENTION_FUNCTIONS[kind]
    monkeypatch.setitem(type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping, kind, make)
    with traceable_masks():
        assert ALL_MASK_ATTENTION_FUNCTIONS[kind](2, 3, use_vmap=True, dtype="float32") == "a mask"
    assert seen == [{"use_vmap": False, "dtype": "float32"}]
    assert ALL_MASK_ATTENTION_FUNCTIONS[kind] is make
    monkeypatch.undo()
    assert ALL_MASK_ATTENTION_FUNCTIONS[kind] is before


def test_the_functions_come_back_after_an_error() -> None:
    before = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    with pytest.raises(RuntimeError, match="the export failed"), traceable_masks():
        raise RuntimeError("the export failed")
    assert ALL_MASK_ATTENTION_FUNCTIONS["eager"] is before
