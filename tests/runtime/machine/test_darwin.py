"""What only macOS needs, called through C with a function that does what macOS's ``sysctlbyname`` does."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from firstvec.machine import darwin

VALUES: dict[bytes, bytes] = {
    b"hw.optional.avx2_0": (1).to_bytes(4, "little"),
    b"hw.optional.avx512vnni": (0).to_bytes(4, "little"),
    b"machdep.cpu.brand_string": b"Apple M2\0",
}


def sysctlbyname(name: bytes, old: int, old_size: int, new: int | None, new_size: int) -> int:
    """Do what sysctl(3) describes: copy the value, if there is room, and set the size. -1 is an error."""
    size = ctypes.c_size_t.from_address(old_size)
    value = VALUES.get(name)
    if value is None or new is not None or new_size != 0 or size.value < len(value):
        return -1
    ctypes.memmove(old, value, len(value))
    size.value = len(value)
    return 0


@pytest.fixture(autouse=True)
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the function into the place of the system's library. Its arguments go the way through C."""
    prototype = ctypes.CFUNCTYPE(
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    )
    library = SimpleNamespace(sysctlbyname=prototype(sysctlbyname))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library if name is None else pytest.fail(f"loads {name}"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [("hw.optional.avx2_0", True), ("hw.optional.avx512vnni", False), ("hw.optional.another", False)],
)
def test_a_feature_is_there_if_its_number_is_not_0(key: str, expected: bool) -> None:
    assert darwin.has_feature(key) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"Apple M2\0", "Apple M2"), (b"\0", ""), (b"x" * 254 + b"\0", "x" * 254), (b"M\xff\0", "M\ufffd")],
)
def test_the_processors_name_is_the_text_up_to_its_end(
    monkeypatch: pytest.MonkeyPatch, text: bytes, expected: str
) -> None:
    monkeypatch.setitem(VALUES, b"machdep.cpu.brand_string", text)
    assert darwin.processor_name() == expected


@pytest.mark.parametrize("text", [None, b"x" * 256 + b"\0"], ids=["missing", "too long"])
def test_a_name_that_the_system_does_not_give_is_empty(monkeypatch: pytest.MonkeyPatch, text: bytes | None) -> None:
    if text is None:
        monkeypatch.delitem(VALUES, b"machdep.cpu.brand_string")
    else:
        monkeypatch.setitem(VALUES, b"machdep.cpu.brand_string", text)
    assert darwin.processor_name() == ""
