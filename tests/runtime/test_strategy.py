"""The table of strategies."""

from __future__ import annotations

import pytest

from firstvec.errors import InputError
from firstvec.plans import PLANS, Plan
from firstvec.strategy import LoadingStrategy


def test_the_strategies_are_the_five_of_the_loader_that_this_one_replaces() -> None:
    assert {member.name: member.value for member in LoadingStrategy} == {
        "LAZY": "lazy",
        "BACKGROUND": "background",
        "PROGRESSIVE": "progressive",
        "QUANTIZED": "quantized",
        "CACHED": "cached",
    }


@pytest.mark.parametrize("member", LoadingStrategy)
@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_a_strategy_is_parsed_from_its_name_in_any_case(member: LoadingStrategy, spell: type[str]) -> None:
    assert LoadingStrategy.parse(spell(member.value)) is member


@pytest.mark.parametrize("member", LoadingStrategy)
def test_a_member_is_parsed_as_itself(member: LoadingStrategy) -> None:
    assert LoadingStrategy.parse(member) is member


@pytest.mark.parametrize("value", ["eager", "", " lazy", "LoadingStrategy.LAZY", None, 1, b"lazy", ["lazy"], {}])
def test_anything_else_is_an_input_error_that_names_the_value_and_the_choices(value: object) -> None:
    with pytest.raises(InputError) as caught:
        LoadingStrategy.parse(value)  # type: ignore[arg-type]
    text = str(caught.value)
    assert f"unknown strategy {value!r}" in text
    assert all(member.value in text for member in LoadingStrategy)


@pytest.mark.parametrize(
    ("member", "in_thread", "quick_start", "hands_over", "prefers"),
    [
        (LoadingStrategy.LAZY, False, True, False, "best"),
        (LoadingStrategy.BACKGROUND, True, False, False, "best"),
        (LoadingStrategy.PROGRESSIVE, True, True, True, "best"),
        (LoadingStrategy.QUANTIZED, True, True, False, "int8"),
        (LoadingStrategy.CACHED, True, True, False, "precompiled"),
    ],
)
def test_each_plan_is_the_one_of_the_design(
    member: LoadingStrategy, in_thread: bool, quick_start: bool, hands_over: bool, prefers: str
) -> None:
    assert PLANS[member.value] == Plan(
        in_thread=in_thread, quick_start=quick_start, hands_over=hands_over, prefers=prefers
    )


def test_every_strategy_has_a_plan() -> None:
    assert [*PLANS] == [member.value for member in LoadingStrategy]


def test_only_a_plan_that_starts_quickly_in_a_thread_hands_over() -> None:
    assert all(plan.quick_start and plan.in_thread for plan in PLANS.values() if plan.hands_over)
