"""The processor: its family, its instruction sets, and an identity for what is remembered about it."""

from __future__ import annotations

import os
import sys

from firstvec.engines.table import INSTRUCTION_SETS
from firstvec.machine.system_files import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.engines.table import InstructionSet

_IDENTITY = frozenset(("vendor_id", "cpu family", "model", "model name", "stepping", "flags"))  # x86-64
_IDENTITY |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"}  # Arm
"""Lines of ``/proc/cpuinfo``. The other lines change from core to core, or while the machine runs."""

_seen: list[str] = []
"""Linux's description of the first processor, once it could be read."""
_found: dict[tuple[str, str], tuple[str, ...]] = {}
"""Family and description → instruction sets."""


def machine() -> str:
    """Return the processor's family as ``platform.machine()`` spells it."""
    return os.uname().machine


def instruction_sets() -> tuple[str, ...]:
    """Return the names of `INSTRUCTION_SETS` that this processor has. What cannot be seen is not used."""
    family = machine().lower()
    key = family, _description()
    if key not in _found:
        flags = key[1].partition("\nflags")[2].partition("\n")[0].partition(":")[2].split()
        rows = INSTRUCTION_SETS.items()
        _found[key] = tuple(name for name, row in rows if family in row.machines and _has(row, flags))
    return _found[key]


def _has(row: InstructionSet, flags: list[str]) -> bool:
    if row.cpu_flag is None:
        return True
    if sys.platform == "darwin":
        from firstvec.machine.darwin import has_feature

        return row.sysctl is not None and has_feature(row.sysctl)
    return row.cpu_flag in flags


def identity() -> str:
    """Return eight hexadecimal digits that differ between processors of another model, stepping or set of features."""
    from binascii import crc32

    if sys.platform == "darwin":
        from firstvec.machine.darwin import processor_name

        text = processor_name()
    else:
        text = "\n".join(line for line in _description().splitlines() if line.partition(":")[0].strip() in _IDENTITY)
    return f"{crc32(f'{machine()} {text}'.encode()):08x}"


def _description() -> str:
    """Return Linux's description of the first processor. Empty on other systems."""
    # The first 8 KiB hold the first processor, also on a machine of 256 cores. The next call tries again where they
    # could not be read, for example because too many files are open.
    if not _seen and (text := read_text("/proc/cpuinfo", 8192).partition("\n\n")[0]):
        _seen.append(text)
    return _seen[0] if _seen else ""
