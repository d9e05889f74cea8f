"""The names of the strategies as an enum. The table has a file of its own, because ``import enum`` costs 3 ms."""

from __future__ import annotations

import enum

from firstvec.strategy import strategy_name


class LoadingStrategy(enum.Enum):
    """When a model is loaded and which of its artifacts is taken. `firstvec.strategy` has a row for each member."""

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
        return cls(strategy_name(value))
