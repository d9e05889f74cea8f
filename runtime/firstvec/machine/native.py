"""firstvec's own engine on this machine: whether its extension module is installed, and what its kernels use.

The module takes 0.3 ms to import, so what it says is asked of the module itself.
"""

from __future__ import annotations

import os

from firstvec.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def module() -> ModuleType | None:
    """Return the extension module ``firstvec._native``. None: firstvec was installed without it."""
    try:
        from firstvec import _native
    except ImportError:
        return None
    return _native


def version() -> str | None:
    """Return the engine's version, which counts the changes of the vectors' bits. None: it is not installed."""
    native = module()
    return native.VERSION if native is not None else None


def why_missing() -> str:
    """Return what the install wrote about a module that it could not compile, for people. Empty: it wrote nothing."""
    from firstvec.machine.system_files import read_text

    return read_text(os.path.join(os.path.dirname(os.path.dirname(__file__)), "_native.txt")).strip()


def instruction_set() -> str | None:
    """Return the instruction set of the kernels to use: the fastest, or ``FIRSTVEC_NATIVE_ISA``. None: no engine.

    Raises:
        InputError: this processor, or this build of the engine, cannot run the instruction set of that variable.
    """
    native = module()
    if native is None:
        return None
    usable: tuple[str, ...] = native.instruction_sets()
    asked = os.environ.get("FIRSTVEC_NATIVE_ISA") or usable[0]
    if asked not in usable:
        raise InputError(f"FIRSTVEC_NATIVE_ISA is {asked!r}: this processor can use {', '.join(usable)}")
    return asked
