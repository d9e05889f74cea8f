"""Compile the extension module ``firstvec._native`` from the C sources of this folder.

``python runtime/native/build.py`` writes ``runtime/firstvec/_native.abi3.so``. The wheel's build hook calls `build`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NAME = "_native.abi3.so"
# No product may be fused with a sum, and no sum reordered, because the vectors' bits are promised.
FLAGS = (
    "-std=c11 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-trapping-math "
    "-Wall -Wextra -Wno-unknown-pragmas -Wno-psabi"
).split()
X86 = {
    "kernels_avx512_vnni": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma",
    "kernels_avx_vnni": "-mavx2 -mfma -mavxvnni",
    "kernels_avx2": "-mavx2 -mfma",
}
ARM = {"kernels_neon_dot": "-march=armv8.2-a+dotprod"}
COMMON = ("kernels_plain", "processor", "weights", "threads", "encoder", "wordpiece", "module")


def find_compiler() -> list[str] | None:
    """Return the command of a C compiler: ``$CC``, the system's, or that of the package ziglang. None: there is none."""
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    try:
        import ziglang  # noqa: F401
    except ImportError:
        return None
    return [sys.executable, "-m", "ziglang", "cc"]


def build(output: Path, compiler: list[str], flags: tuple[str, ...] = (), machine: str = platform.machine()) -> None:
    """Compile and link the module. ``flags`` come last, for every file.

    Raises:
        RuntimeError: the compiler fails. The message has what it printed.
    """
    kernels = X86 if machine in ("x86_64", "AMD64") else ARM if machine in ("aarch64", "arm64") else {}
    include = f"-I{sysconfig.get_path('include')}"
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for name in (*COMMON, *kernels):
            objects.append(f"{folder}/{name}.o")
            own = kernels.get(name, "").split()
            _run([*compiler, *FLAGS, *own, include, *flags, "-c", str(HERE / f"{name}.c"), "-o", objects[-1]])
        link = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-Wl,-z,now"]
        output.parent.mkdir(parents=True, exist_ok=True)
        _run([*compiler, *link, *flags, "-o", f"{folder}/{NAME}", *objects, "-lm", "-lpthread"])
        shutil.copyfile(f"{folder}/{NAME}", f"{output}.new")
        os.replace(f"{output}.new", output)  # a process that has mapped the old file keeps it


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr or done.stdout}")


def main() -> None:
    """Compile for this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE.parent / "firstvec" / NAME)
    options, flags = parser.parse_known_args()
    compiler = find_compiler()
    if compiler is None:
        sys.exit("no C compiler was found: install one (Debian: apt-get install gcc), or `pip install ziglang`")
    build(options.output, compiler, tuple(flags))
    print(options.output)


if __name__ == "__main__":
    main()
