"""Measure the first vector of each family of models beside the import floor, in fresh processes, in turn.

The models are the small random ones of the tests, so the figures show what the engine and the tokenizer cost, and not
the size of the weights. RoBERTa comes three times: with the tests' vocabulary, and with 50,265 and 151,000 tokens. Each
model with a quick tokenizer is measured once more with the tokenizers package in its place.

A ratio compares two times of the same round, and the table has the medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fresh
from programs import FLOOR, TEXT
from record import DASH, machine, markdown_list, markdown_table, write

from firstvec import OptimizedEmbeddingLoader
from firstvec.bundle.manifest import Manifest

sys.path.append(str(Path(__file__).parents[1]))  # for the models of the tests

FAMILIES = {
    "BERT": "save_bert",
    "DistilBERT": "save_distilbert",
    "MPNet": "save_mpnet",
    "RoBERTa": "save_roberta",
    "XLM-RoBERTa": "save_xlm_roberta",
    "ALBERT": "save_albert",
    "DeBERTa-v2": "save_deberta",
    "ModernBERT": "save_modernbert",
    "NomicBERT": "save_nomic_bert",
    "T5 encoder": "save_t5",
    "Qwen3": "save_qwen3",
    "Gemma 3": "save_gemma",
    "StaticEmbedding": "save_static",
}
"""Family → its function in tests/tiny.py."""
LARGE = {f"RoBERTa, {tokens:,} tokens": tokens for tokens in (50_265, 151_000)}
FIRST_VECTOR = """
import sys
from firstvec import OptimizedEmbeddingLoader
loader = OptimizedEmbeddingLoader(sys.argv[1], "cached", output="buffer")
loader.start_loading()
loader.get_provider().embed_query(sys.argv[2])
"""
IMPORTS = "import numpy, onnxruntime, tokenizers"
COLUMNS = (
    "wall ms",
    "processor ms",
    f"wall ÷ {FLOOR}",
    f"processor ÷ {FLOOR}",
    "processor ÷ the same with the package",
)
Samples = dict[str, list[tuple[float, float]]]
"""Program → wall time and processor time of each counted round, from exec to exit, in milliseconds."""


def main() -> None:
    """Print the table, and write the files that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="counted rounds; one more warms up (default 11)")
    names = [*FAMILIES, *LARGE]
    parser.add_argument("--only", action="append", choices=names, metavar="FAMILY", help=f"of: {'; '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, and the machine")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    facts = {"rounds": options.rounds, **machine()}
    with tempfile.TemporaryDirectory(prefix="firstvec-families-") as folder:
        bundles = make_bundles([name for name in names if not options.only or name in options.only], Path(folder))
        described = {name: describe(bundle) for name, bundle in bundles.items() if not name.startswith(PACKAGE)}
        samples = run_rounds(bundles, options.rounds)
    rows = [["family", "engine", "quick tokenizer", *COLUMNS]]
    rows += [[name, *parts, *summarize(name, samples)] for name, parts in described.items()]
    rows.append([FLOOR, DASH, DASH, *summarize(FLOOR, samples)])
    table = markdown_table(rows)
    print(table)
    if options.json:
        write(options.json, json.dumps({"run": facts, "milliseconds": samples}, ensure_ascii=False) + "\n")
    if options.markdown:
        write(options.markdown, f"{table}\n{markdown_list(facts)}")


PACKAGE = "with the package: "


def make_bundles(names: list[str], folder: Path) -> dict[str, Path]:
    """Build a bundle of each family, and copy those with a quick tokenizer without that tokenizer."""
    from tests import tiny

    from firstvec_build.exporters.native_weights import find_obstacle
    from firstvec_build.pipeline import build
    from firstvec_build.reference import load_model
    from firstvec_build.source import resolve

    bundles: dict[str, Path] = {}
    for number, name in enumerate(names):
        save: Callable[[Path], Path] = (
            partial(tiny.save_roberta, tokens=LARGE[name]) if name in LARGE else getattr(tiny, FAMILIES[name])
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = str(save(folder / f"model-{number}"))
            is_native = find_obstacle(load_model(resolve(model))) is None
            only = ["native-fp32" if is_native else "onnx-fp32"]
            manifest = build(model, folder / "bundles", only=only).manifest
        bundles[name] = Path(manifest.root)
        if manifest.wordpiece is not None or manifest.quick_tokenizer is not None:
            copy = bundles[PACKAGE + name] = folder / "bundles" / f"package-{number}"
            shutil.copytree(manifest.root, copy)
            leave_out(copy / "firstvec.json", "wordpiece", "quick_tokenizer", "checksum")
        print(f"{name}: built", file=sys.stderr)
    return bundles


def leave_out(path: Path, *keys: str) -> None:
    """Remove keys of a manifest."""
    document = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({key: value for key, value in document.items() if key not in keys}), "utf-8")


def describe(bundle: Path) -> tuple[str, str]:
    """Return the engine that gives the bundle's first vector, and the family of its quick tokenizer."""
    manifest = Manifest.read(bundle)
    provider: Any = OptimizedEmbeddingLoader(str(bundle), "cached").get_provider()
    family = "WordPiece" if manifest.wordpiece is not None else DASH
    if manifest.quick_tokenizer is not None:
        family = manifest.quick_tokenizer.family.replace("_", " ")
    return str(provider.engine).partition(" ")[0], family


def run_rounds(bundles: dict[str, Path], rounds: int) -> Samples:
    """Run every program once a round."""
    commands = {FLOOR: [IMPORTS], **{name: [FIRST_VECTOR, str(path), TEXT] for name, path in bundles.items()}}
    samples: Samples = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, arguments in commands.items():
            usage = fresh.measure([sys.executable, "-c", *arguments])
            if number:
                samples[name].append((1e3 * usage.seconds, 1e3 * usage.processor_seconds))
    return samples


def summarize(name: str, samples: Samples) -> list[str]:
    """Return the cells of `COLUMNS`."""
    wall, processor = (statistics.median(times) for times in zip(*samples[name], strict=True))
    cells = [f"{wall:.0f}", f"{processor:.0f}"]
    for peer, which in ((FLOOR, 0), (FLOOR, 1), (PACKAGE + name, 1)):
        pairs = zip(samples[name], samples.get(peer, ()), strict=peer in samples)
        ratios = [ours[which] / theirs[which] for ours, theirs in pairs]
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else DASH)
    return cells


if __name__ == "__main__":
    main()
