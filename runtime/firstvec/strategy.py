"""The table of loading strategies: when a loader loads, which artifact it takes, which session it opens.

`firstvec.enums.LoadingStrategy` has the same names as an enum.
"""

from __future__ import annotations

from firstvec.errors import InputError
from firstvec.record import Record


class Strategy(Record):
    """One row of `STRATEGIES`."""

    in_background: bool
    """Whether ``start_loading()`` loads in a thread. Otherwise the first ``get_provider()`` loads."""
    quick_start: bool
    """Whether the first session is the one that opens fastest. Otherwise it is the one that runs fastest."""
    hand_over_after: int | None
    """How many tokens the first session computes before a session that runs fastest is built. None: never."""
    takes: str
    """``best`` (the best artifact for the machine), ``int8``, or ``full`` (full precision)."""


STRATEGIES = {
    "lazy": Strategy(in_background=False, quick_start=True, hand_over_after=4096, takes="best"),
    "background": Strategy(in_background=True, quick_start=False, hand_over_after=None, takes="best"),
    "progressive": Strategy(in_background=True, quick_start=True, hand_over_after=1, takes="best"),
    "quantized": Strategy(in_background=True, quick_start=True, hand_over_after=4096, takes="int8"),
    "cached": Strategy(in_background=True, quick_start=True, hand_over_after=4096, takes="full"),
}
"""Name → row. The name is the value of a `firstvec.enums.LoadingStrategy`."""


def strategy_name(strategy: object) -> str:
    """Return the key of `STRATEGIES` for a member of `LoadingStrategy`, or for its name in any case.

    Raises:
        InputError: there is no such strategy.
    """
    name = getattr(strategy, "value", strategy)
    if isinstance(name, str) and name.lower() in STRATEGIES:
        return name.lower()
    raise InputError(f"unknown strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")
