"""What `require_signature` adds to a first vector: fresh processes, exec to exit, with it and without, taking turns.

A copy of the bundle (hard links) is signed with a key made for it. The differences are taken in each round; that of
the processor's time depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from firstvec.manifest import Manifest
from firstvec_build.signing import sign

FIRST_VECTOR = """
import sys
from firstvec import OptimizedEmbeddingLoader
key = sys.argv[3] if len(sys.argv) > 3 else None
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], output="buffer", require_signature=key)
loader.start_loading()
loader.get_provider().embed_query("how do I reset my password?")
"""
CHECK = """
import sys, time
from firstvec.store import find
started = time.perf_counter()
find(sys.argv[1], *sys.argv[2:])
print(1e3 * (time.perf_counter() - started))
"""


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--strategy", default="quantized", help="which artifact is loaded")
    parser.add_argument("--rounds", type=int, default=31, help="of each program, after one that warms up")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.bundle.resolve().parent, prefix=".signed-") as folder:
        bundle = Path(folder) / options.bundle.name
        ignored = shutil.ignore_patterns("model.sig")
        shutil.copytree(options.bundle, bundle, ignore=ignored)
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = Path(folder) / "signer.key", Path(folder) / "signer.pub"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        sign(Manifest.read(bundle), private)
        load, find = (FIRST_VECTOR, bundle, options.strategy), (CHECK, bundle)
        rounds = [
            [measured(load, find), measured((*load, public), (*find, public))] for _ in range(options.rounds + 1)
        ][1:]
    figures: dict[str, float] = {}
    for name in rounds[0][0]:
        figures[f"{name}, ms"] = statistics.median(without[name] for without, _ in rounds)
        figures[f"{name}, signature required, ms"] = statistics.median(with_it[name] for _, with_it in rounds)
        figures[f"{name}, difference, ms"] = statistics.median(
            with_it[name] - without[name] for without, with_it in rounds
        )
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}, indent=1))


def measured(load: tuple[object, ...], find: tuple[object, ...]) -> dict[str, float]:
    """What is measured of a first vector, and of finding the manifest."""
    wall, processor, _ = run(*load)
    return {
        "first vector, exec to exit": wall,
        "first vector, processor time": processor,
        "finding the manifest, in the process": run(*find)[2],
    }


def run(code: object, *arguments: object) -> tuple[float, float, float]:
    """Milliseconds of a fresh process: by the clock, of processor time, and what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", str(code), *map(str, arguments)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    wall, after = 1e3 * (time.perf_counter() - started), resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return wall, processor, float(done.stdout or 0)


if __name__ == "__main__":
    main()
