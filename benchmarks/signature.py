"""Measure the time that `require_signature` adds to a first vector, in fresh processes with it and without, in turn.

A copy of the bundle is signed with a new key. A difference compares two times of the same round. Processor time depends
less on other load of the machine than wall time does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import fresh
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from firstvec.bundle import SIGNATURE_NAME
from firstvec.bundle.manifest import Manifest
from firstvec_build.shipping.signing import sign

FIRST_VECTOR = """
import sys
from firstvec import OptimizedEmbeddingLoader
key = sys.argv[3] if len(sys.argv) > 3 else None
loader = OptimizedEmbeddingLoader(sys.argv[1], sys.argv[2], output="buffer", require_signature=key)
loader.start_loading()
loader.get_provider().embed_query("how do I reset my password?")
"""
FIND = """
import sys, time
from firstvec.bundle.store import find_bundle
started = time.perf_counter()
find_bundle(sys.argv[1], *sys.argv[2:])
print(1e3 * (time.perf_counter() - started))
"""


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--strategy", default="quantized", help="which artifact is loaded")
    parser.add_argument("--rounds", type=int, default=31, help="rounds of each program, after one that warms up")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    with tempfile.TemporaryDirectory(dir=options.bundle.resolve().parent, prefix=".signed-") as folder:
        bundle = Path(folder) / options.bundle.name
        shutil.copytree(options.bundle, bundle, ignore=shutil.ignore_patterns(SIGNATURE_NAME))
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = Path(folder) / "signer.key", Path(folder) / "signer.pub"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        sign(Manifest.read(bundle), private)
        load, find = (FIRST_VECTOR, bundle, options.strategy), (FIND, bundle)
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
    """Return milliseconds of a first vector, and of finding the manifest."""
    usage = run(*load)
    return {
        "first vector, exec to exit": 1e3 * usage.seconds,
        "first vector, processor time": 1e3 * usage.processor_seconds,
        "finding the manifest, in the process": float(run(*find).output),
    }


def run(code: object, *arguments: object) -> fresh.Usage:
    """Run code in a fresh process."""
    try:
        return fresh.measure([sys.executable, "-c", str(code), *map(str, arguments)])
    except fresh.ProcessFailed as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
