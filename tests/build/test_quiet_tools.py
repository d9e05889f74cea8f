"""The exporters' prints and logs do not reach the console, and later prints and logs do."""

from __future__ import annotations

import logging
import warnings

import pytest

from firstvec_build.quiet_tools import silence_tools


def make_noise() -> None:
    warnings.warn("a warning", stacklevel=1)
    logging.getLogger("some.tool").error("a record")
    print("a print")


def test_tools_are_silent_inside_and_heard_afterwards(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with silence_tools():
        make_noise()
        logging.getLogger("some.tool").critical("a critical record")
    assert capsys.readouterr().out == ""
    assert [record.message for record in caplog.records] == ["a critical record"]
    with pytest.warns(UserWarning, match="a warning"):
        make_noise()
    assert capsys.readouterr().out == "a print\n"
    assert [record.message for record in caplog.records][1:] == ["a record"]


def test_error_passes_through_and_ends_the_silence(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="the reason"), silence_tools():
        raise ValueError("the reason")
    logging.getLogger("some.tool").error("a record")
    assert [record.message for record in caplog.records] == ["a record"]


def test_level_that_the_program_had_disabled_stays_disabled() -> None:
    logging.disable(logging.WARNING)
    try:
        with silence_tools():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.WARNING
    finally:
        logging.disable(logging.NOTSET)
