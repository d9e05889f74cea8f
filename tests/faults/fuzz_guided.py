"""Fuzz one target, guided by coverage: ``python -m tests.faults.fuzz_guided TARGET FOLDER [-runs=N …]``.

libFuzzer's options follow the folder, which keeps the corpus and what was found. It needs the package atheris.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["firstvec"]):
    from tests.faults.fuzz import TARGETS, seeds, words


def main(name: str, folder: Path, options: list[str]) -> None:
    """Fuzz until libFuzzer's options end it; exit code 77 and an input in ``folder`` if something was found."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(seeds(name)):
        (corpus / f"seed-{index}").write_bytes(seed)
    (folder / "dictionary").write_text("".join(f'"{_escaped(word)}"\n' for word in words()), "ascii")
    (folder / "scratch").mkdir(exist_ok=True)
    options = [f"-dict={folder / 'dictionary'}", f"-artifact_prefix={folder}/", *options, str(corpus)]
    atheris.Setup([sys.argv[0], *options], TARGETS[name](folder / "scratch"))
    atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
