"""fp32 as a program of `torch.export`, in torch's archive format ``.pt2``, without compiled code."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch.export import Dim

from firstvec.errors import ExportError
from firstvec_build.exporters.masks import traceable_masks
from firstvec_build.quiet_tools import silence_tools
from firstvec_build.reference import SentenceEncoder, make_example

_MOST_TEXTS = 1 << 20
"""Texts of a run."""


def export(model: SentenceTransformer, path: Path) -> None:
    """Write the model as an exported program. The same model gives the same bytes.

    Raises:
        ExportError: torch cannot export the model.
    """
    shape = {0: Dim("batch", min=1, max=_MOST_TEXTS), 1: Dim("tokens", min=1, max=int(model.max_seq_length or 0))}
    stream = io.BytesIO()
    with silence_tools(), torch.no_grad(), traceable_masks():
        try:
            program = torch.export.export(
                SentenceEncoder(model).eval(),
                make_example(model),
                dynamic_shapes={"input_ids": shape, "attention_mask": shape},
            )
            torch.export.save(program, stream)
        except Exception as error:  # torch raises UserError, RuntimeError, AssertionError, ValueError …
            raise ExportError(f"torch.export cannot export the model: {type(error).__name__}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())
