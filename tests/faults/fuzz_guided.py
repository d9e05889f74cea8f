"""Fuzz one target, guided by coverage: ``python -m tests.faults.fuzz_guided TARGET FOLDER [-runs=N …]``.

libFuzzer's options stand behind the folder. The folder keeps the corpus and the inputs that failed. This program needs
the package atheris.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["firstvec"]):
    from tests.faults.fuzz import TARGETS, seeds, words


def main(name: str, folder: Path, options: list[str]) -> None:
    """Fuzz until libFuzzer's options end it. If an input fails, the exit code is 77 and the input is in ``folder``."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(seeds(name)):
        (corpus / f"seed-{index}").write_bytes(seed)
    (folder / "dictionary").write_text("".join(f'"{_escape(word)}"\n' for word in words()), "ascii")
    (folder / "scratch").mkdir(exist_ok=True)
    options = [f"-dict={folder / 'dictionary'}", f"-artifact_prefix={folder}/", *options, str(corpus)]
    atheris.Setup([sys.argv[0], *options], TARGETS[name](folder / "scratch"))
    atheris.Fuzz()


def _escape(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
