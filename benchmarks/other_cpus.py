"""Compare the vectors of other processors: onnxruntime's real kernels run on an emulated processor.

::

    python benchmarks/other_cpus.py --artifact onnx-int8-avx512_vnni -- qemu-x86_64 -cpu max .venv/bin/python

The command after ``--`` starts a Python that can import firstvec's runtime. For another architecture, this Python needs
an onnxruntime for that architecture on PYTHONPATH. QEMU's user mode shows the host's /proc/cpuinfo. onnxruntime for Arm
needs the /proc/cpuinfo of an Arm processor (``unshare -m``, then bind such a file over it).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from firstvec.bundle.manifest import Manifest
from firstvec.loading.self_test import mean_difference, read_golden
from firstvec.text.tokenizer import open_tokenizer
from firstvec_build.quality import cosine, evaluation_sentences

CHILD = """
import json, sys
from firstvec.bundle.manifest import Manifest
from firstvec.loading.opening import open_artifact, verify_artifact
manifest = Manifest.read(sys.argv[1])
artifact = next(artifact for artifact in manifest.artifacts if artifact.id == sys.argv[2])
session = open_artifact(verify_artifact(manifest, artifact), self_test=False).session
print(json.dumps([session.run([ids]).tolist()[0] for ids in json.loads(sys.stdin.read())]))
session.close()
"""


def vectors(python: list[str], root: Path, artifact: str, token_ids: list[list[int]]) -> np.ndarray:
    """Return the vectors that the given Python computes, (N, D). Each row of ids is run alone."""
    command = [*python, "-c", CHILD, str(root), artifact]
    done = subprocess.run(command, input=json.dumps(token_ids), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(python)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return np.array(json.loads(done.stdout))


def main() -> None:
    """Print how far the vectors of the other processor are from those of this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--artifact", required=True, help="the artifact that the other processor runs")
    parser.add_argument("--same-as", help="an artifact with the same weights that this processor can run instead")
    parser.add_argument("--sentences", type=int, default=60, help="number of sentences of 11 to 119 characters")
    parser.add_argument("python", nargs="+", help="the command of a Python on the other processor, after --")
    options = parser.parse_args()
    manifest = Manifest.read(options.bundle)
    texts = [text for text in evaluation_sentences() if 10 < len(text) < 120][: options.sentences]
    token_ids = open_tokenizer(manifest).tokenize(texts)
    here = vectors([sys.executable], options.bundle, options.same_as or options.artifact, token_ids)
    there = vectors(options.python, options.bundle, options.artifact, token_ids)
    distances = np.linalg.norm(there - here, axis=1) / np.linalg.norm(here, axis=1)
    print(f"{options.artifact}, {len(texts)} sentences, the other processor beside this one:")
    print(f"  relative difference: mean {distances.mean():.6f}, largest {distances.max():.6f}")
    print(f"  cosine: mean {cosine(there, here).mean():.6f}, worst {cosine(there, here).min():.6f}")
    artifact = next(artifact for artifact in manifest.artifacts if artifact.id == options.artifact)
    golden = read_golden(manifest, artifact)
    alone = vectors(options.python, options.bundle, options.artifact, [list(ids) for ids in golden.token_ids])
    found = mean_difference(alone.ravel().tolist(), golden.vectors, len(golden.token_ids))
    print(f"  self-test: {found:.6f}, at most {golden.max_difference:g} is right")


if __name__ == "__main__":
    main()
