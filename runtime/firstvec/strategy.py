"""What a caller chooses: one of five loading strategies (a table of when and which), and the form of the vectors."""

from __future__ import annotations

import enum

from firstvec.errors import InputError
from firstvec.record import Record


class LoadingStrategy(enum.Enum):
    """When a model is loaded and which of its artifacts is taken; `PLANS` says what each member means."""

    LAZY = "lazy"
    BACKGROUND = "background"
    PROGRESSIVE = "progressive"
    QUANTIZED = "quantized"
    CACHED = "cached"

    @classmethod
    def parse(cls, value: LoadingStrategy | str) -> LoadingStrategy:
        """Return the strategy of that name, in any case.

        Raises:
            InputError: there is no such strategy.
        """
        if isinstance(value, cls):
            return value
        names = ", ".join(member.value for member in cls)
        if isinstance(value, str) and value.lower() in {member.value for member in cls}:
            return cls(value.lower())
        raise InputError(f"unknown strategy {value!r}: use one of {names}")


class Plan(Record):
    """What a strategy does."""

    in_thread: bool
    """Whether ``start_loading()`` loads in a thread; otherwise the first ``get_provider()`` loads."""
    quick_start: bool
    """Whether the first session is the one that opens fastest; otherwise the one that runs fastest."""
    hands_over: bool
    """Whether a session that runs fastest takes over later."""
    prefers: str
    """``best`` for the profile, ``int8``, or ``precompiled`` full precision: see `firstvec.selection`."""


PLANS = {
    LoadingStrategy.LAZY: Plan(in_thread=False, quick_start=True, hands_over=False, prefers="best"),
    LoadingStrategy.BACKGROUND: Plan(in_thread=True, quick_start=False, hands_over=False, prefers="best"),
    LoadingStrategy.PROGRESSIVE: Plan(in_thread=True, quick_start=True, hands_over=True, prefers="best"),
    LoadingStrategy.QUANTIZED: Plan(in_thread=True, quick_start=True, hands_over=False, prefers="int8"),
    LoadingStrategy.CACHED: Plan(in_thread=True, quick_start=True, hands_over=False, prefers="precompiled"),
}

OUTPUTS = ("numpy", "list", "buffer")
"""What vectors are returned as: an array, lists of floats, or a memoryview of float32."""
