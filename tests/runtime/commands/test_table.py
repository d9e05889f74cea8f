"""The table of commands: the quick parser gives a command exactly what typer gives it, or leaves it to typer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from firstvec.commands import app as app_module
from firstvec.commands.app import make_app
from firstvec.commands.completion import COMPLETIONS
from firstvec.commands.table import COMMANDS, Command, Option, parse
from firstvec.errors import InputError
from firstvec.options import make_options

OPTIONS = [
    pytest.param(command, option, id=f"{command.name} {' '.join(option.names) or option.field}")
    for command in COMMANDS.values()
    for option in command.options
]


def pass_by_typer(command: str, arguments: list[str]) -> dict[str, Any] | None:
    """What typer gives the command's function. None: typer refuses the arguments, or prints help."""
    passed: list[tuple[str, dict[str, Any]]] = []
    with (
        patch.object(Command, "load", lambda self: lambda **values: passed.append((self.name, values))),
        patch.object(app_module, "entry_points", lambda group: ()),
    ):
        try:
            make_app([command, *arguments])([command, *arguments], standalone_mode=False)
        except Exception as error:
            # The classes of usage errors have moved between versions of typer. All have the exit code.
            if getattr(error, "exit_code", None) != 2:
                raise
            return None
    if not passed:
        return None
    ((called, values),) = passed
    assert called == command
    return values


def parse_or_message(parser: Callable[..., Any], *arguments: Any) -> dict[str, Any] | str | None:
    """What a parser returns, or the message of its error."""
    try:
        found: dict[str, Any] | None = parser(*arguments)
    except InputError as error:
        return str(error)
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether names, values and their types are the same. 1, 1.0 and True are equal in Python."""
    return one == other and all(repr(one[name]) == repr(other[name]) for name in one)


PLAIN = [
    ["encode"],
    ["encode", "one"],
    ["encode", "one", "two words", ""],
    ["encode", "-"],
    ["encode", "-m", "model", "one"],
    ["encode", "--model=a=b", "one", "--strategy", "QUANTIZED"],
    ["encode", "one", "-s", "cached", "-f", "text", "-o", "file", "--batch-size", "7"],
    ["encode", "--enable-quantization", "--min-quality", "-0.5", "--device=cpu", "one", "--format=npy"],
    ["encode", "-f", "text", "-f", "json", "one"],
    ["encode", "--format", "JSON"],
    ["encode", "--require-signature", "signer.pub", "one"],
    ["encode", "--artifact", "onnx-fp32", "one"],
    ["encode", "-m", "--", "a.csv"],
    ["encode", "--"],
    ["encode", "--", "-text"],
    ["encode", "--", "--help"],
    ["encode", "--", "-"],
    ["encode", "one", "--", "--", "two"],
    ["encode", "-m", "-h", "one"],
    ["encode", "-o", "\udcff.json", "\udcff"],
    ["encode", "--batch-size", "+007", "--min-quality=1e-3", "x"],
    ["encode", "-f", "JSONL", "--format=csv", "x"],
    ["similar"],
    ["similar", "query"],
    ["similar", "query", "a.txt", "-", "b.txt", "-k", "3", "--json"],
    ["similar", "-k", "3", "", "--top=4", "", "-m", "model"],
    ["similar", "--", "-query", "--", "-file"],
    ["list"],
    ["list", "--json"],
    ["list", "--"],
    ["inspect", "--model", "model", "--json"],
    ["inspect", "-m", ""],
    ["inspect", "model", "--json"],
    ["inspect", ""],
    ["explain", "model", "--model", "model"],
    ["explain", "--model=other", "model", "-m", "model"],
    ["explain", "--", "-model"],
    ["explain", "-s", "Lazy", "-m", "model", "--min-quality=.5"],
    ["explain", "--device", "cuda:1", "--enable-quantization", "--artifact=x", "--json"],
    ["verify"],
    ["verify", "--strict", "--public-key", "key.pub", "--json", "--model=x"],
    ["verify", "-"],
    ["doctor", "--quick", "--model", "x", "--json"],
    ["doctor", "./model", "--quick"],
]


@pytest.mark.parametrize("line", PLAIN, ids=" ".join)
def test_what_is_parsed_is_what_typer_passes(line: list[str]) -> None:
    command, *arguments = line
    quick, full = parse(COMMANDS[command], arguments), pass_by_typer(command, arguments)
    assert quick is not None
    assert full is not None
    assert same(quick, full), (quick, full)


@pytest.mark.parametrize(
    "line",
    [
        ["encode", "--help"],
        ["encode", "-h"],
        ["encode", "--unknown"],
        ["encode", "-mmodel"],
        ["encode", "-m"],
        ["encode", "-m=model"],
        ["encode", "--enable-quantization=yes"],
        ["encode", "--strategy", "eager"],
        ["encode", "--format", "xml"],
        ["encode", "--batch-size", "0"],
        ["encode", "--batch-size", "many"],
        ["encode", "--batch-size", "1_0"],
        ["encode", "--batch-size", " 7"],
        ["encode", "--batch-size", "٣"],
        ["encode", "--batch-size", ""],
        ["encode", "--batch-size", "9" * 5000],
        ["encode", "--min-quality", "2"],
        ["encode", "--min-quality", "nan"],
        ["encode", "--min-quality", "0_0.5"],
        ["encode", "one", "--output"],
        ["encode", "--mod", "model"],
        ["list", "here"],
        ["list", "-m", "model"],
        ["list", "--json=yes"],
        ["inspect", "one", "two"],
        ["explain", "one", "--", "two"],
        ["explain", "--strategy"],
        ["verify", "-", "-"],
        ["doctor", "", ""],
        ["similar", "query", "--top", "0"],
        ["similar", "query", "-k"],
    ],
    ids=lambda line: " ".join(line)[:40],
)
def test_what_is_not_plain_is_left_to_typer(line: list[str]) -> None:
    assert parse(COMMANDS[line[0]], line[1:]) is None


def _values(option: Option) -> st.SearchStrategy[str]:
    """Values of an option, right ones and wrong ones."""
    numbers = st.integers(-2, 70).map(str) | st.floats(-2, 2).map(str)
    odd = st.sampled_from(
        [
            *("", "-", "--", "-m", "-h", "--json", "nan", "inf", "-0", "1e400", ".5", "5.", "7.0", "+7", "0x7", "1_0"),
            *(" 7", "7\n", "٣", "½", "lazy", "LAZY", "bac\u212aground", "\u017faved", "ca\u017fhed", "Json", "NPY"),
        ]
    )
    return st.sampled_from(option.choices or ("value",)) | numbers | odd | st.text(max_size=4)


def lines() -> st.SearchStrategy[tuple[str, list[str]]]:
    """A command and arguments for it: options with and without values, texts, and what nobody would type."""

    def arguments(command: Command) -> st.SearchStrategy[list[str]]:
        pieces: list[st.SearchStrategy[list[str]]] = [
            st.sampled_from(["text", "-", "", "two words", "a.csv", "ü", "\udcff", "="]).map(lambda each: [each]),
            st.sampled_from(["--", "-x", "--x", "--x=y", "-", "---", "-=", "--=", "-é"]).map(lambda each: [each]),
        ]
        for option in command.options:
            for name in option.names:
                if option.kind is bool:
                    pieces += [st.just([name]), st.just([name]), _values(option).map(lambda v, n=name: [f"{n}={v}"])]
                else:
                    pieces += [
                        _values(option).map(lambda value, name=name: [name, value]),
                        _values(option).map(lambda value, name=name: [f"{name}={value}"]),
                        _values(option).map(lambda value, name=name: [f"{name}{value}"]),
                        st.just([name]),
                    ]
        return st.lists(st.one_of(pieces), max_size=5).map(lambda lists: [word for words in lists for word in words])

    return st.sampled_from([*COMMANDS]).flatmap(lambda name: st.tuples(st.just(name), arguments(COMMANDS[name])))


@pytest.mark.parametrize(
    "line",
    [
        ["inspect", "one", "--model", "two"],
        ["explain", "-m", "two", "one", "--json"],
        ["verify", "--model=", "one"],
        ["doctor", "", "--model=one"],
        ["doctor", "one", "--model", "one", "-m", "all-MiniLM-L6-v2"],
        ["inspect", "one", "--model", "all-MiniLM-L6-v2"],
    ],
    ids=" ".join,
)
def test_two_names_of_a_bundle_are_an_error_of_both_parsers(line: list[str]) -> None:
    command, *arguments = line
    with pytest.raises(InputError, match=r"MODEL is given twice, as '.*' and as '.*': give one of them") as quick:
        parse(COMMANDS[command], arguments)
    with pytest.raises(InputError) as full:
        pass_by_typer(command, arguments)
    assert str(quick.value) == str(full.value)


@settings(max_examples=400, deadline=None)
@given(lines())
@example(("encode", ["-s", "bac\u212aground"]))
@example(("encode", ["--batch-size", "7.0"]))
@example(("encode", ["--min-quality", "-0"]))
@example(("encode", ["-m", "--", "--", "x"]))
@example(("explain", ["one", "-m", "two"]))
@example(("explain", ["one", "-m", "one", "--strategy"]))
def test_whatever_is_parsed_is_what_typer_passes(line: tuple[str, list[str]]) -> None:
    command, arguments = line
    quick = parse_or_message(parse, COMMANDS[command], arguments)
    if quick is None:
        return
    full = parse_or_message(pass_by_typer, command, arguments)
    if isinstance(quick, str):
        assert full == quick
        return
    assert not isinstance(full, str)
    assert full is not None, "the quick parser accepts what typer refuses"
    assert same(quick, full), (quick, full)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=[*COMMANDS])
def test_a_command_gets_every_option_that_its_function_takes(command: Command) -> None:
    taken = inspect.signature(command.load()).parameters
    fields = {option.field for option in command.options}
    if any(option.kind is list for option in command.options):
        fields.add("texts_are_literal")
    named = {name for name, each in taken.items() if each.kind is not each.VAR_KEYWORD}
    assert named <= fields
    if len(named) < len(taken):
        further = {*inspect.signature(make_options).parameters}
        if command.name == "embed":
            from firstvec.bulk.job import make_job

            further |= {*inspect.signature(make_job).parameters}
        assert fields - named <= further
    else:
        assert named == fields


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_an_option_is_declared_whole(command: Command, option: Option) -> None:
    names = [name for each in command.options for name in each.names]
    assert len(names) == len({*names})
    assert option.kind in (str, bool, int, float, list)
    assert option.help.endswith(".")
    assert (option.metavar is None) is (option.kind is bool)
    assert all(name.startswith("--") for name in option.names[:1])
    assert option.completion is None or option.completion in COMPLETIONS
    assert not option.is_positional or (option.kind is str and not option.choices)
    if option.choices:
        assert all(choice == choice.lower() for choice in option.choices)
        assert option.default is None or option.default in option.choices


def test_every_command_about_a_bundle_names_it_the_same_way() -> None:
    for name, command in COMMANDS.items():
        models = [option for option in command.options if option.field == "model"]
        assert [option.names for option in models] == ([] if name == "list" else [("--model", "-m")])
        # Where no texts and no files stand, the name of a bundle may stand.
        has_others = any(not option.names for option in command.options)
        assert all(option.is_positional is not has_others for option in models)
        assert len(command.positionals()) > 0 or name == "list"
