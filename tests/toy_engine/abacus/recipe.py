"""The recipe: the weights of BERT as arrays in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firstvec.bundle.manifest import Artifact
    from firstvec_build.recipes import Recipe
    from firstvec_build.workbench import Workbench

NAME = "abacus/model.npz"


def make(bench: Workbench, recipe: Recipe) -> Artifact:
    """Write the artifact and measure it."""
    import numpy

    bert = bench.encoder[0].auto_model
    arrays = {name: value.numpy() for name, value in bert.state_dict().items()}
    path = bench.folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    numpy.savez(path, heads=bert.config.num_attention_heads, layers=bert.config.num_hidden_layers, **arrays)
    return bench.measure(bench.describe(recipe, (NAME,)))
