"""INT8 weights for firstvec's own engine: which integers stand for a matrix.

The engine computes, of each row x of a product's inputs (docs/native-engine.md):

    x'   = x * multipliers                                     (where the product has some)
    low  = min(x'),  step = (max(x') - low) / 255,  q[k] = rint((x'[k] - low) / step)
    y[n] = scales[n] * (step * sum_k q[k] * w[n, k] + low * sum_k w[n, k]) + bias[n]

Three things decide how close y comes to fp32:

- Multipliers make channels with large inputs smaller, and their weights larger by the same factor, until both are
  equally hard to quantize: SmoothQuant, arXiv:2211.10438, with alpha = 0.5.
- Weights are rounded column by column, and the columns that are not rounded yet make up for the error
  (`firstvec_build.int8.rounding`).
- The weights of neighbours are limited so that AVX2 adds exactly. So one file serves every instruction set, and all of
  them compute the same sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from firstvec_build import reference
from firstvec_build.int8.rounding import LARGEST_OF_PAIRS, Matrix, round_with_compensation
from firstvec_build.memory import split_into_batches

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BATCH = 16
"""Calibration texts that the model encodes together. This is for speed only."""
_ROWS = 1024
"""Inputs whose products are added up together. This is for speed only."""
_SMALLEST = 1e-5
"""The largest magnitude of a row or a channel counts as this at least, so that nothing is divided by 0."""

_SMOOTHED = ("attention.self", "intermediate.dense")
"""The products whose inputs come from a LayerNorm. The other products' inputs gain nothing from multipliers."""
_INPUT_OF = {"attention.self": "attention.self.query"}
"""Product → the layer of the model whose inputs are the product's."""


class Quantizer:
    """Quantizes the matrices of a model, with the inputs that calibration texts give them.

    Args:
        model: a model for which `firstvec_build.exporters.native_weights.find_obstacle` returns None.
        texts: the calibration texts.
        report_texts: called with the number of texts of each batch.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        texts: Sequence[str],
        report_texts: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._rows: dict[str, list[Matrix]] = {}  # inputs that are not in the two sums yet
        self._hessians: dict[str, Matrix] = {}
        self._largest_inputs: dict[str, Matrix] = {}
        # float64, so that the processor that builds does not decide on an integer.
        encoder = copy.deepcopy(model[0].auto_model).double().eval()
        modules = dict(encoder.named_modules())
        handles = []
        for layer in range(encoder.config.num_hidden_layers):
            for product in ("attention.self", "attention.output.dense", "intermediate.dense", "output.dense"):
                name = f"encoder.layer.{layer}.{product}"
                source = modules[f"encoder.layer.{layer}.{_INPUT_OF.get(product, product)}"]
                handles.append(source.register_forward_pre_hook(self._make_hook(name)))
        with torch.no_grad():
            for batch in split_into_batches(reference.count_tokens(model, texts), _BATCH):
                inputs = model.tokenizer(
                    [texts[index] for index in batch],
                    padding=True,
                    truncation=True,
                    max_length=model.max_seq_length,
                    return_tensors="pt",
                )
                self._is_token = inputs["attention_mask"].bool()
                encoder(**inputs)
                report_texts(len(batch))
        for handle in handles:
            handle.remove()
        for name in [name for name, rows in self._rows.items() if rows]:
            self._add_up(name)

    def _make_hook(self, name: str) -> Any:
        rows = self._rows[name] = []

        def record(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            rows.append(arguments[0][self._is_token].numpy())  # (T, depth)
            if sum(map(len, rows)) > _ROWS:
                self._add_up(name)

        return record

    def _add_up(self, name: str) -> None:
        rows = np.concatenate(self._rows[name])
        self._rows[name].clear()
        self._hessians[name] = self._hessians.get(name, 0) + rows.T @ rows
        self._largest_inputs[name] = np.maximum(self._largest_inputs.get(name, 0), np.abs(rows).max(axis=0))

    def __call__(
        self, name: str, rows: Matrix
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """Return integers (columns, depth), the scale of each row, and the multipliers of the inputs, or None."""
        hessian, multipliers = self._hessians[name], None
        if name.endswith(_SMOOTHED):
            multipliers = choose_multipliers(rows, self._largest_inputs[name])
            rows = rows / multipliers
            hessian = hessian * np.outer(multipliers, multipliers)
        scales = (np.maximum(np.abs(rows).max(axis=1), _SMALLEST) / LARGEST_OF_PAIRS).astype(np.float32)
        integers = round_with_compensation(rows / scales[:, None].astype(np.float64), hessian, limit_pairs=True)
        return integers, scales, multipliers


def choose_multipliers(rows: Matrix, largest_inputs: Matrix) -> npt.NDArray[np.float32]:
    """Return the multiplier of each input channel: sqrt(largest weight / largest input), with geometric mean 1."""
    weights = np.maximum(np.abs(rows).max(axis=0), _SMALLEST)
    multipliers = np.sqrt(weights / np.maximum(largest_inputs, _SMALLEST))
    result: npt.NDArray[np.float32] = (multipliers / np.exp(np.log(multipliers).mean())).astype(np.float32)
    return result
