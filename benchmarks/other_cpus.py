"""What artifacts compute on CPUs that this machine is not: onnxruntime's real kernels, on an emulated CPU.

::

    python benchmarks/other_cpus.py --artifact onnx-int8-avx512_vnni -- qemu-x86_64 -cpu max .venv/bin/python

The command after ``--`` starts a Python in which firstvec's runtime can be imported (for another architecture: with its
own onnxruntime, on PYTHONPATH). QEMU's user mode shows the host's /proc/cpuinfo; onnxruntime for Arm needs to find an
Arm one there (``unshare -m``, then bind another file over it).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from firstvec import self_test
from firstvec.manifest import Manifest
from firstvec_build.quality import cosine, evaluation_sentences

CHILD = """
import json, sys
from firstvec.load import Opener
from firstvec.manifest import Manifest
manifest = Manifest.read(sys.argv[1]).replace(self_test=None)
artifact = next(artifact for artifact in manifest.artifacts if artifact.id == sys.argv[2])
session = Opener(manifest, artifact, "cpu").open()
print(json.dumps([session.run([ids]).tolist()[0] for ids in json.loads(sys.stdin.read())]))
"""


def vectors(python: list[str], root: Path, artifact: str, token_ids: list[list[int]]) -> np.ndarray:
    """What that Python computes, each row of ids alone, (N, D)."""
    command = [*python, "-c", CHILD, str(root), artifact]
    done = subprocess.run(command, input=json.dumps(token_ids), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(python)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return np.array(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"))
    parser.add_argument("--artifact", required=True, help="what the other CPU runs")
    parser.add_argument("--same-as", help="what this CPU runs, if it cannot run that; the same weights")
    parser.add_argument("--sentences", type=int, default=60, help="how many of the project's, of 11 to 119 characters")
    parser.add_argument("python", nargs="+", help="the command of a Python on the other CPU, after --")
    options = parser.parse_args()
    # Only here: the other Python may have no tokenizers.
    from firstvec.tokenizer import open_tokenizer

    manifest = Manifest.read(options.bundle)
    texts = [text for text in evaluation_sentences() if 10 < len(text) < 120][: options.sentences]
    token_ids = open_tokenizer(manifest).encode(texts)
    here = vectors([sys.executable], options.bundle, options.same_as or options.artifact, token_ids)
    there = vectors(options.python, options.bundle, options.artifact, token_ids)
    distances = np.linalg.norm(there - here, axis=1) / np.linalg.norm(here, axis=1)
    print(f"{options.artifact}, {len(texts)} sentences, there against here:")
    print(f"  relative difference: mean {distances.mean():.6f}, largest {distances.max():.6f}")
    print(f"  cosine: mean {cosine(there, here).mean():.6f}, worst {cosine(there, here).min():.6f}")
    artifact = next(artifact for artifact in manifest.artifacts if artifact.id == options.artifact)
    golden = self_test.read(manifest, artifact)
    alone = vectors(options.python, options.bundle, options.artifact, [list(ids) for ids in golden.token_ids])
    found = self_test.mean_difference(alone.ravel().tolist(), golden.vectors, len(golden.token_ids))
    print(f"  self-test: {found:.6f}, at most {golden.max_difference:g} is right")


if __name__ == "__main__":
    main()
