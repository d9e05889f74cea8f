"""The build hook: wheels and editable installs get the extension module ``firstvec._native`` if it can be compiled.

The variable FIRSTVEC_NATIVE decides. Unset: a failure leaves the module out, and firstvec needs onnxruntime.
``off``: no module. ``required``: a failure is an error. A platform tag of `build.TARGETS`: the module is compiled for
that platform, and a failure is an error.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The folder is no package, and on sys.path its name would hide the package `build`.
_spec = importlib.util.spec_from_file_location("firstvec_native_build", Path(__file__).with_name("build.py"))
assert _spec is not None
assert _spec.loader is not None
native = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = native
_spec.loader.exec_module(native)

NOTE = "_native.txt"
"""Says why the module is missing, in the module's place, because pip does not show what a build prints."""
COMPILER_PACKAGE = "ziglang>=0.15"
PLATFORMS_OF_THE_PACKAGE = {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64")}
HELP = """\
To get the engine, have a C compiler and Python's headers (Debian: apt-get install gcc python3-dev), and install
firstvec again with pip's options --force-reinstall --no-deps --no-cache-dir. With FIRSTVEC_NATIVE=required, a failure
is an error."""


class NativeHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the module before hatchling collects the files."""

    def dependencies(self) -> list[str]:
        """Ask for the package ziglang, a C compiler of 100 MB, if no other compiler is there that can do it."""
        wanted = os.environ.get("FIRSTVEC_NATIVE", "")
        if wanted in native.TARGETS:
            return [COMPILER_PACKAGE]
        if wanted == "off" or os.environ.get("CC") or native.find_obstacle():
            return []
        if (sys.platform, platform.machine()) not in PLATFORMS_OF_THE_PACKAGE:
            return []
        return [] if any(map(native.can_compile, native.find_compilers())) else [COMPILER_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the module, and say in the wheel's tag for which machines it is."""
        wanted = os.environ.get("FIRSTVEC_NATIVE", "")
        if wanted not in ("", "off", "required", *native.TARGETS):
            choices = ", ".join(("off", "required", *native.TARGETS))
            self.app.abort(f"FIRSTVEC_NATIVE is {wanted!r}: it can be {choices}, or not set")
        # Removed with the hook, after hatchling has read the file.
        self._folder = tempfile.TemporaryDirectory()
        is_editable = version == "editable"
        package = Path(self.root, "runtime", "firstvec") if is_editable else Path(self._folder.name)
        module, note = package / native.NAME, package / NOTE
        problem = self._compile(module, wanted)
        if problem and wanted not in ("", "off"):
            self.app.abort(f"firstvec: the native engine cannot be compiled.\n{problem}")
        if problem:
            module.unlink(missing_ok=True)
            needs = "firstvec has no native engine here, and needs onnxruntime: pip install 'firstvec[onnx]'"
            note.write_text(f"{needs}\n{problem}\n{HELP}\n", "utf-8")
            self.app.display_warning(note.read_text("utf-8"))
        else:
            note.unlink(missing_ok=True)
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-{wanted if wanted in native.TARGETS else _platform_tag()}"
        if not is_editable:
            made = note if problem else module
            build_data["force_include"][str(made)] = f"firstvec/{made.name}"

    def _compile(self, module: Path, wanted: str) -> str:
        """Return what went wrong, or nothing."""
        try:
            if wanted == "off":
                return "The reason: FIRSTVEC_NATIVE=off was set when firstvec was installed."
            if wanted in native.TARGETS:
                native.build_for(module, native.TARGETS[wanted])
                self.app.display_info(f"firstvec: the native engine was compiled for {wanted}")
            else:
                compiler = native.build_here(module)
                self.app.display_info(f"firstvec: the native engine was compiled with {' '.join(compiler)}")
        except RuntimeError as problem:
            return f"The reason: {problem}"
        return ""


def _platform_tag() -> str:
    """Return the tag of exactly this platform: the module was compiled for its C library."""
    from packaging.tags import platform_tags  # hatchling brings it

    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))
