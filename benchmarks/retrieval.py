"""Measure how many of the ten nearest passages stay the same with each artifact, over thousands of passages.

The passages are the paragraphs of the docstrings in Python's standard library, because every machine has them. Each
passage is the query once, and is compared with all others. The bundle's full precision is the reference.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from record import machine, markdown_list, markdown_table, write
from subjects import open_artifacts

from firstvec.bundle.manifest import Manifest
from firstvec.errors import FirstvecError
from firstvec_build.quality import cosine, neighbour_overlap

LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "ensurepip", "turtledemo")
"""Folders of the standard library whose docstrings say little, or are not of the library."""
SHORTEST = 40
"""Characters. A shorter paragraph is a heading or a signature."""


def passages(count: int | None = None) -> list[str]:
    """Return ``count`` different passages in a fixed order, evenly spread over all. None: all.

    The passages depend on the version of Python only.
    """
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        if {*path.relative_to(library).parts} & {*LEFT_OUT}:
            continue
        for docstring in _docstrings(path):
            paragraphs = (" ".join(paragraph.split()) for paragraph in docstring.split("\n\n"))
            found |= dict.fromkeys(paragraph for paragraph in paragraphs if len(paragraph) >= SHORTEST)
    texts = [*found]
    if count is None or count >= len(texts):
        return texts
    return [texts[index * len(texts) // count] for index in range(count)]


def _docstrings(path: Path) -> list[str]:
    tree = ast.parse(path.read_bytes())
    nodes = (each for each in ast.walk(tree) if isinstance(each, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    return [docstring for node in nodes if (docstring := ast.get_docstring(node))]


def main() -> None:
    """Measure the artifacts of a bundle, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--artifact", action="append", metavar="ID", help="measure this one, and full precision")
    parser.add_argument("--passages", type=int, metavar="N", help="so many, evenly spread; all if left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the machine")
    options = parser.parse_args()
    if options.passages is not None and options.passages < 20:
        parser.error("--passages must be at least 20")
    try:
        measure(options)
    except FirstvecError as error:
        sys.exit(f"error: {error}")


def measure(options: argparse.Namespace) -> None:
    """Compare and report.

    Raises:
        FirstvecError: the bundle cannot be used.
    """
    manifest = Manifest.read(options.bundle.resolve())
    texts = passages(options.passages)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    reference: Any = None
    figures: dict[str, dict[str, float]] = {}
    for name, encode in open_artifacts(manifest, options.artifact):
        vectors = np.asarray(encode(texts, 32), np.float32)
        reference = vectors if reference is None else reference
        cosines = cosine(vectors, reference)
        figures[name] = {
            "top-10 overlap": neighbour_overlap(vectors, reference),
            "same nearest": neighbour_overlap(vectors, reference, 1),
            "cosine, mean": float(cosines.mean()),
            "cosine, min": float(cosines.min()),
        }
    facts = {"model": manifest.model.name, "passages": len(texts), "sha256 of the passages": digest, **machine()}
    rows = [["artifact", *next(iter(figures.values()))]]
    rows += [[name, *(f"{value:.4f}" for value in each.values())] for name, each in figures.items()]
    table = f"## Retrieval\n\n{markdown_table(rows)}"
    print(table)
    if options.json:
        write(options.json, json.dumps({"run": facts, "figures": figures}, indent=1) + "\n")
    if options.markdown:
        write(options.markdown, f"{table}\n{markdown_list(facts)}")


if __name__ == "__main__":
    main()
