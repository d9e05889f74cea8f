"""Compile the engine's sources in other ways than ``runtime/native/build.py``: as a program, a library, for fuzzing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.conftest import REPOSITORY

HERE = Path(__file__).parent
SOURCES = REPOSITORY / "runtime" / "native"
IS_X86 = platform.machine() in ("x86_64", "AMD64")


def load_build() -> Any:
    """Return ``runtime/native/build.py`` as a module."""
    spec = importlib.util.spec_from_file_location("native_build", SOURCES / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = load_build()


def find_compilers() -> dict[str, list[str]]:
    """Return the C compilers of this machine: name → command."""
    found = {name: [name] for name in ("gcc", "clang") if shutil.which(name)}
    if importlib.util.find_spec("ziglang"):
        found["zig"] = BUILD.zig("-mcpu=baseline")
    return found


def compile_and_link(
    output: Path,
    own_source: str,
    *,
    compiler: list[str],
    flags: tuple[str, ...] = (),
    link: tuple[str, ...] = (),
    machine: str = platform.machine(),
    stand_in: bool = False,
    only: tuple[str, ...] = (),
) -> Path:
    """Compile the engine without its Python module, and one C file of this folder, and link them.

    Args:
        output: the program or library.
        own_source: the C file of this folder, without ``.c``.
        compiler: the command of the compiler.
        flags: more flags, for every file and for the link.
        link: more flags for the link.
        machine: the processor to compile for.
        stand_in: compile also ``avx_vnni_stand_in.c``.
        only: the engine's files to compile. Default: all.
    """
    folder = output.with_name(f"{output.name}.objects")
    folder.mkdir(parents=True)
    jobs = [(SOURCES / f"{name}.c", own) for name, own in BUILD._sources(compiler, machine) if name != "module"]
    jobs = [job for job in jobs if not only or job[0].stem in only]
    jobs.append((HERE / f"{own_source}.c", [*BUILD.FLAGS]))
    if stand_in:
        jobs.append((HERE / "avx_vnni_stand_in.c", [*BUILD.FLAGS, *BUILD.X86["kernels_avx2"].split()]))
    objects = [str(folder / f"{source.stem}.o") for source, _ in jobs]
    commands = [
        [*compiler, *own, f"-I{SOURCES}", *flags, "-c", str(source), "-o", name]
        for (source, own), name in zip(jobs, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))
    run([*compiler, *flags, *link, "-o", str(output), *objects, "-lm", "-lpthread"])
    return output


def load_module(path: Path) -> ModuleType:
    """Import an extension module ``_native`` from a path. Several of them can be imported in one process."""
    loader = ExtensionFileLoader(f"{path.parent.name}._native", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def run(command: list[str], timeout: float = 600, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, **options)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done
