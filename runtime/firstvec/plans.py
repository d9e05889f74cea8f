"""What a caller chooses: one of five loading strategies (a table of when and which), and the form of the vectors."""

from __future__ import annotations

from firstvec.errors import InputError
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.strategy import LoadingStrategy


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
    "lazy": Plan(in_thread=False, quick_start=True, hands_over=False, prefers="best"),
    "background": Plan(in_thread=True, quick_start=False, hands_over=False, prefers="best"),
    "progressive": Plan(in_thread=True, quick_start=True, hands_over=True, prefers="best"),
    "quantized": Plan(in_thread=True, quick_start=True, hands_over=False, prefers="int8"),
    "cached": Plan(in_thread=True, quick_start=True, hands_over=False, prefers="precompiled"),
}
"""Value of a `LoadingStrategy` → its plan."""

OUTPUTS = ("numpy", "list", "buffer")
"""What vectors are returned as: an array, lists of floats, or a memoryview of float32."""


def strategy_name(strategy: LoadingStrategy | str) -> str:
    """Return the key of `PLANS` for a member of `LoadingStrategy`, or for its name in any case.

    Raises:
        InputError: there is no such strategy.
    """
    name = getattr(strategy, "value", strategy)
    if isinstance(name, str) and name.lower() in PLANS:
        return name.lower()
    raise InputError(f"unknown strategy {strategy!r}: use one of {', '.join(PLANS)}")
