"""One row and one recipe: what makes an engine known to every process that has this folder on its PYTHONPATH."""

from __future__ import annotations

from abacus.recipe import make

from firstvec.engines.table import ENGINES, Engine
from firstvec_build.recipes import RECIPES, Recipe

ENGINES["abacus"] = Engine(
    formats=("npz",),
    module="abacus.session",
    package="abacus",
    distributions=("abacus",),
    versions=("1", "2"),
    devices=("cpu",),
    rank=4,
    has_two_kinds=True,
    memory_mb=1,
    memory_when_loaded_mb=1,
    maps_weights=False,
    install="abacus",
    purpose="computes with numpy",
)
RECIPES["npz-fp32"] = Recipe(format="npz", precision="fp32", engine="abacus", make=make)
