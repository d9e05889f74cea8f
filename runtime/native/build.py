"""Compile the extension module ``firstvec._native`` from the C sources of this folder.

``python runtime/native/build.py`` writes ``runtime/firstvec/_native.abi3.so`` for this machine. ``hatch_build.py``
calls the same functions for wheels and for editable installs.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
NAME = "_native.abi3.so"
# No product may be fused with a sum, and no sum reordered, because the vectors' bits are promised. An undeclared
# function would be linked, and missing when the module is imported.
FLAGS = (
    *("-std=c11", "-O3", "-g0", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi", "-Werror=implicit-function-declaration"),
)
# No build id, and no path in the module: the same sources and the same compiler give the same bytes.
LINK = {
    "linux": ("-shared", "-O3", "-g0", "-Wl,-z,now", "-Wl,--build-id=none", "-Wl,--strip-debug"),
    "darwin": ("-shared", "-O3", "-g0", "-undefined", "dynamic_lookup", f"-Wl,-install_name,{NAME}"),
}
X86 = {
    "kernels_avx512_vnni": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma",
    "kernels_avx_vnni": "-mavx2 -mfma -mavxvnni",
    "kernels_avx2": "-mavx2 -mfma",
}
ARM = {"kernels_neon_dot": "-march=armv8.2-a+dotprod"}
COMMON = ("kernels_plain", "processor", "weights", "threads", "encoder", "wordpiece", "unigram", "byte_pairs", "module")
PROBED = ("kernels_avx512_vnni", "kernels_avx_vnni", "kernels_neon_dot", "module")
"""The sources that ask most of a compiler: the newest instructions, and Python's headers."""


class Target(NamedTuple):
    """A platform for which the package ziglang compiles, on any machine."""

    name: str
    """As zig has it."""
    machine: str
    system: str = "linux"
    glibc: tuple[int, int] = (0, 0)
    """The newest version of glibc's symbols that the module may ask for."""


TARGETS = {
    "manylinux_2_17_x86_64.manylinux2014_x86_64": Target("x86_64-linux-gnu.2.17", "x86_64", glibc=(2, 17)),
    "manylinux_2_17_aarch64.manylinux2014_aarch64": Target("aarch64-linux-gnu.2.17", "aarch64", glibc=(2, 17)),
    "musllinux_1_2_x86_64": Target("x86_64-linux-musl", "x86_64"),
    "musllinux_1_2_aarch64": Target("aarch64-linux-musl", "aarch64"),
    "macosx_11_0_arm64": Target("aarch64-macos.11.0", "arm64", "darwin"),
}
"""Platform tag of a wheel → its target."""


def zig(*flags: str) -> list[str]:
    """Return the command of the compiler in the package ziglang."""
    return [sys.executable, "-m", "ziglang", "cc", *flags]


def find_compilers() -> Iterator[list[str]]:
    """Give the commands of the C compilers: ``$CC`` alone, or the system's and then that of the package ziglang."""
    if chosen := os.environ.get("CC"):
        yield shlex.split(chosen)
        return
    if found := next(filter(shutil.which, ("cc", "gcc", "clang")), None):
        yield [found]
    try:
        import ziglang  # noqa: F401
    except ImportError:
        return
    yield zig("-mcpu=baseline")  # zig's default is the processor that compiles


def find_compiler() -> list[str] | None:
    """Return the command of the first C compiler. None: there is none."""
    return next(find_compilers(), None)


def find_obstacle() -> str | None:
    """Return why no compiler could give this interpreter the module. None: one could."""
    if sys.platform == "win32":
        return "the engine needs a POSIX system"
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "the engine needs CPython with the GIL, because it uses Python's stable ABI"
    include = sysconfig.get_path("include")
    if not os.path.exists(f"{include}/Python.h"):
        return f"Python's headers are missing: there is no {include}/Python.h (Debian: apt-get install python3-dev)"
    return None


def can_compile(compiler: list[str]) -> bool:
    """Say in a moment whether a compiler understands the sources that ask most of it."""
    if "ziglang" in compiler:
        return True  # the package brings everything, and it has no -fsyntax-only
    try:
        for name, flags in _sources(compiler, platform.machine()):
            if name in PROBED:
                _run([*compiler, *flags, "-fsyntax-only", f"{HERE}/{name}.c"])
    except RuntimeError:
        return False
    return True


def build(
    output: Path,
    compiler: list[str],
    flags: tuple[str, ...] = (),
    machine: str = platform.machine(),
    system: str = sys.platform,
) -> None:
    """Compile and link the module. ``flags`` come last, for every file.

    Raises:
        RuntimeError: the compiler fails. The message has what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        objects, commands = [], []
        for name, own in _sources(compiler, machine):
            objects.append(f"{folder}/{name}.o")
            commands.append([*compiler, *own, *flags, "-c", f"{HERE}/{name}.c", "-o", objects[-1]])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: _run(command, folder), commands))
        link = LINK.get(system, LINK["linux"])
        _run([*compiler, *link, *flags, "-o", f"{folder}/{NAME}", *objects, "-lm", "-lpthread"], folder)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(f"{folder}/{NAME}", f"{output}.new")
        os.replace(f"{output}.new", output)  # a process that has mapped the old file keeps it


def build_here(output: Path, flags: tuple[str, ...] = ()) -> list[str]:
    """Compile the module for this machine with the first compiler that can, and return that compiler's command.

    Raises:
        RuntimeError: there is no such compiler, or this interpreter cannot import what it makes.
    """
    if obstacle := find_obstacle():
        raise RuntimeError(obstacle)
    problems = []
    for compiler in find_compilers():
        try:
            build(output, compiler, flags)
            _import(output)
        except RuntimeError as problem:
            output.unlink(missing_ok=True)
            problems.append(str(problem))
        else:
            return compiler
    raise RuntimeError("\n".join(problems) or "no C compiler was found (cc, gcc, clang)")


def build_for(output: Path, target: Target) -> None:
    """Compile the module for another platform with the package ziglang.

    Raises:
        RuntimeError: the compiler fails, or the module would need a newer glibc than the target's.
    """
    build(output, zig("-target", target.name), machine=target.machine, system=target.system)
    asked = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", output.read_bytes())
    newest = max(((int(major), int(minor)) for major, minor in asked), default=target.glibc)
    if newest > target.glibc:
        raise RuntimeError(f"the module for {target.name} asks for glibc {newest[0]}.{newest[1]}")


def _sources(compiler: list[str], machine: str) -> Iterator[tuple[str, list[str]]]:
    """Give the name and the flags of every source for a machine."""
    kernels = X86 if machine in ("x86_64", "AMD64") else ARM if machine in ("aarch64", "arm64") else {}
    for name in (*COMMON, *kernels):
        own = kernels.get(name, "")
        if "ziglang" in compiler:
            own = own.replace("-march=armv8.2-a", "-mcpu=generic")  # zig's -march takes names of processors
        yield name, [*FLAGS, *own.split(), f"-I{sysconfig.get_path('include')}"]


def _import(module: Path) -> None:
    """Import the module in a process of its own, because a file that links can still miss a function."""
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('firstvec._native', sys.argv[1]); "
    _run([sys.executable, "-I", "-c", code + "s.loader.exec_module(u.module_from_spec(s))", str(module)])


def _run(command: list[str], cache: str | None = None) -> None:
    """Run a command. ``cache`` is a folder for the files that zig keeps: the user's own cache stays as it was."""
    environment = {"ZIG_GLOBAL_CACHE_DIR": f"{cache}/zig"} | os.environ if cache else None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise RuntimeError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr or done.stdout}".rstrip())


def main() -> None:
    """Compile for this machine. Flags that the parser does not know are the compiler's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE.parent / "firstvec" / NAME)
    parser.add_argument("--targets", action="store_true", help="print the platform tags of `make wheels`")
    options, flags = parser.parse_known_args()
    if options.targets:
        print(*TARGETS)
        return
    try:
        build_here(options.output, tuple(flags))
    except RuntimeError as problem:
        sys.exit(
            f"{problem}\nHave a C compiler (Debian: apt-get install gcc; or: pip install ziglang) and Python's headers."
        )
    print(options.output)


if __name__ == "__main__":
    main()
