"""Let a trace follow how transformers makes attention masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS


@contextmanager
def traceable_masks() -> Iterator[None]:
    """Make every attention mask by broadcasting.

    transformers uses torch.vmap for a model that brings a rule of its own (Gemma 3 sees both directions). No tracer of
    torch follows vmap: the export fails with "unordered_map::at". The rules compare positions, so broadcasting gives
    the same mask. A rule that does anything else gives other vectors, which the build's comparison refuses.
    """
    kinds = ("eager", "sdpa")
    for kind in kinds:
        ALL_MASK_ATTENTION_FUNCTIONS[kind] = _without_vmap(ALL_MASK_ATTENTION_FUNCTIONS[kind])
    try:
        yield
    finally:
        for kind in kinds:
            del ALL_MASK_ATTENTION_FUNCTIONS[kind]  # transformers' own function lies below


def _without_vmap(make_mask: Any) -> Any:
    def make(*sizes: Any, **options: Any) -> Any:
        return make_mask(*sizes, **{**options, "use_vmap": False})

    return make
