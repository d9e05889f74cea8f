"""The table of strategies."""

from __future__ import annotations

import pytest

from firstvec.enums import LoadingStrategy
from firstvec.errors import InputError
from firstvec.strategy import STRATEGIES, Strategy, strategy_name
from tests.conftest import Fresh


@pytest.mark.parametrize(
    ("name", "in_background", "quick_start", "hand_over_after", "takes"),
    [
        ("lazy", False, True, 4096, "best"),
        ("background", True, False, None, "best"),
        ("progressive", True, True, 1, "best"),
        ("quantized", True, True, 4096, "int8"),
        ("cached", True, True, 4096, "full"),
    ],
)
def test_each_row_is_that_of_the_design(
    name: str, in_background: bool, quick_start: bool, hand_over_after: int | None, takes: str
) -> None:
    assert STRATEGIES[name] == Strategy(
        in_background=in_background, quick_start=quick_start, hand_over_after=hand_over_after, takes=takes
    )


def test_there_are_five_strategies() -> None:
    assert [*STRATEGIES] == ["lazy", "background", "progressive", "quantized", "cached"]


def test_only_a_strategy_that_starts_quickly_hands_over() -> None:
    assert all(row.quick_start for row in STRATEGIES.values() if row.hand_over_after is not None)


@pytest.mark.parametrize("name", [*STRATEGIES])
def test_a_name_in_any_case_and_a_member_give_the_key_of_the_table(name: str) -> None:
    for spelled in (name, name.upper(), name.title(), LoadingStrategy(name)):
        assert strategy_name(spelled) == name


@pytest.mark.parametrize("value", ["eager", "", " lazy", "LoadingStrategy.LAZY", None, 1, b"lazy", ["lazy"], {}])
def test_any_other_value_is_an_input_error_that_names_the_value_and_the_choices(value: object) -> None:
    with pytest.raises(InputError) as caught:
        strategy_name(value)
    assert f"unknown strategy {value!r}" in str(caught.value)
    assert all(name in str(caught.value) for name in STRATEGIES)


def test_the_table_does_not_import_enum(fresh: Fresh) -> None:
    """A load reads the table on the way to the first vector, and ``import enum`` takes 3 ms."""
    code = "import sys; {}; print(*sys.modules)"
    before, after = (set(fresh(code.format(do)).stdout.split()) for do in ("pass", "import firstvec.strategy"))
    assert "firstvec.strategy" in after - before
    assert "enum" not in after - before
