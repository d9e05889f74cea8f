"""The strategies as an enum."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from firstvec.enums import LoadingStrategy
from firstvec.errors import InputError
from firstvec.strategy import STRATEGIES


def test_the_strategies_are_the_five_of_the_loader_that_this_one_replaces() -> None:
    assert {member.name: member.value for member in LoadingStrategy} == {
        "LAZY": "lazy",
        "BACKGROUND": "background",
        "PROGRESSIVE": "progressive",
        "QUANTIZED": "quantized",
        "CACHED": "cached",
    }


def test_every_member_has_a_row_in_the_table_of_strategies() -> None:
    assert [member.value for member in LoadingStrategy] == [*STRATEGIES]


@pytest.mark.parametrize("member", LoadingStrategy)
@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_a_strategy_is_parsed_from_its_name_in_any_case(member: LoadingStrategy, spell: Callable[[str], str]) -> None:
    assert LoadingStrategy.parse(spell(member.value)) is member


@pytest.mark.parametrize("member", LoadingStrategy)
def test_a_member_is_parsed_as_itself(member: LoadingStrategy) -> None:
    assert LoadingStrategy.parse(member) is member


@pytest.mark.parametrize("member", LoadingStrategy)
def test_a_member_survives_pickling(member: LoadingStrategy) -> None:
    assert pickle.loads(pickle.dumps(member)) is member


@pytest.mark.parametrize("value", ["eager", "", " lazy", "LoadingStrategy.LAZY", None, 1, b"lazy", ["lazy"], {}])
def test_any_other_value_is_an_input_error_that_names_the_value_and_the_choices(value: object) -> None:
    with pytest.raises(InputError) as caught:
        LoadingStrategy.parse(value)  # type: ignore[arg-type]
    text = str(caught.value)
    assert f"unknown strategy {value!r}" in text
    assert all(member.value in text for member in LoadingStrategy)
