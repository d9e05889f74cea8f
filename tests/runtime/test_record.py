"""Immutable records with keyword arguments, and their fields that are computed late."""

from __future__ import annotations

import copy
import pickle
from typing import TypeVar

import pytest

from firstvec.record import Generic, Late, Record
from tests.conftest import Fresh


class Point(Record):
    x: int
    y: int = 2
    _private: int = 0


class Point3D(Point):
    z: int
    label: str | None = None


class Twin(Record):
    x: int
    y: int = 2


def test_the_fields_are_set_by_keyword() -> None:
    point = Point(x=1, y=5)
    assert (point.x, point.y) == (1, 5)


def test_an_omitted_field_has_its_default() -> None:
    assert Point(x=1).y == 2


def test_a_default_is_overridden_by_none_too() -> None:
    assert Point3D(x=1, y=None, z=3).y is None


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="positional"):
        Point(1, 2)  # type: ignore[misc]


@pytest.mark.parametrize(("record", "values"), [(Point, {}), (Point, {"y": 2}), (Point3D, {"z": 1})])
def test_a_missing_argument_is_named(record: type[Record], values: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=rf"{record.__name__}\(\) misses the argument 'x'"):
        record(**values)


@pytest.mark.parametrize("name", ["w", "_private", "_fields", "to_dict"])
def test_an_unknown_argument_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Point\(\) has no argument '{name}'"):
        Point(x=1, **{name: 3})


@pytest.mark.parametrize("name", ["x", "y", "new"])
def test_setting_an_attribute_is_refused_and_names_replace(name: str) -> None:
    point = Point(x=1)
    with pytest.raises(AttributeError, match=rf"Point is immutable: use replace\({name}="):
        setattr(point, name, 9)
    assert point == Point(x=1)


@pytest.mark.parametrize("name", ["x", "y"])
def test_deleting_an_attribute_is_refused(name: str) -> None:
    point = Point(x=1, y=5)
    with pytest.raises(AttributeError, match="Point is immutable"):
        delattr(point, name)
    assert point == Point(x=1, y=5)


def test_equal_values_are_equal_and_hash_alike() -> None:
    assert Point(x=1) == Point(y=2, x=1)
    assert hash(Point(x=1)) == hash(Point(y=2, x=1))
    assert len({Point(x=1), Point(x=1, y=2), Point(x=2)}) == 2


@pytest.mark.parametrize(
    "other", [Point(x=2), Point(x=1, y=3), Twin(x=1), Point3D(x=1, z=0), {"x": 1, "y": 2}, None, 1]
)
def test_other_values_and_other_types_are_not_equal(other: object) -> None:
    assert Point(x=1) != other
    assert other != Point(x=1)


def test_a_record_that_holds_something_unhashable_has_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(x=[1]))  # type: ignore[arg-type]


def test_replace_changes_a_copy() -> None:
    point = Point3D(x=1, z=3)
    changed = point.replace(z=4, label="b")
    assert changed == Point3D(x=1, y=2, z=4, label="b")
    assert type(changed) is Point3D
    assert point == Point3D(x=1, z=3)


def test_replace_refuses_an_unknown_field() -> None:
    with pytest.raises(TypeError, match="has no argument 'w'"):
        Point(x=1).replace(w=1)


def test_repr_shows_every_field_and_evaluates_to_an_equal_record() -> None:
    point = Point3D(x=1, z=3, label="it's")
    assert repr(point) == """Point3D(x=1, y=2, z=3, label="it's")"""
    assert eval(repr(point)) == point


def test_to_dict_keeps_the_order_of_definition_with_the_parents_fields_first() -> None:
    assert list(Point3D(label="a", z=3, y=2, x=1).to_dict().items()) == [("x", 1), ("y", 2), ("z", 3), ("label", "a")]


def test_to_dict_is_a_copy() -> None:
    point = Point(x=1)
    point.to_dict()["x"] = 9
    assert point.x == 1


def test_a_subclass_leaves_its_parents_fields_alone() -> None:
    assert Point(x=1).to_dict() == {"x": 1, "y": 2}
    with pytest.raises(TypeError, match="has no argument 'z'"):
        Point(x=1, z=3)


def test_a_subclass_without_fields_of_its_own_has_its_parents() -> None:
    class Named(Point):
        """Adds behaviour only."""

    assert Named(x=1).to_dict() == {"x": 1, "y": 2}
    assert Named(x=1) != Point(x=1)


def test_a_subclass_may_annotate_a_field_again() -> None:
    class Narrower(Point):
        x: bool

    assert Narrower(x=True).to_dict() == {"x": True, "y": 2}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))])
def test_copying_and_pickling_give_an_equal_record(duplicate: object) -> None:
    point = Point3D(x=1, z=3)
    assert duplicate(point) == point  # type: ignore[operator]


class Lazy(Record):
    x: int
    double: int = Late(lambda record: calls.append(record.x) or 2 * record.x)  # type: ignore[assignment]


calls: list[int] = []


def test_a_late_field_is_computed_once_when_it_is_first_read() -> None:
    calls.clear()
    record = Lazy(x=3)
    assert calls == []
    assert (record.double, record.double, calls) == (6, 6, [3])
    assert record.to_dict() == {"x": 3, "double": 6}
    assert record == Lazy(x=3, double=6)


def test_a_late_field_may_be_given() -> None:
    calls.clear()
    assert Lazy(x=3, double=7).double == 7
    assert Lazy(x=3).replace(x=4).double == 6  # a copy keeps the value of the record
    assert calls == [3]
    with pytest.raises(AttributeError, match="immutable"):
        Lazy(x=3).double = 1  # type: ignore[misc]


def test_a_late_field_of_the_class_is_the_field_itself() -> None:
    assert isinstance(Lazy.double, Late)


T = TypeVar("T")


class Box(Generic[T]):
    """A class that type checkers see as generic."""


def test_a_class_with_a_type_variable_is_at_run_time_the_class_without_it() -> None:
    assert Box[int] is Box
    assert Box.__mro__ == (Box, Generic, object)


def test_records_import_neither_dataclasses_nor_typing(fresh: Fresh) -> None:
    """Their import takes longer than everything that a record does on the way to the first vector."""
    code = "import sys; {}; print(*sys.modules)"
    before, after = (set(fresh(code.format(do)).stdout.split()) for do in ("pass", "import firstvec.record"))
    assert after - before <= {"firstvec", "firstvec.record", "__future__"}
