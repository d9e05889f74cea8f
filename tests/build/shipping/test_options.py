"""Options that several commands of the toolchain have."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstvec.errors import InputError
from firstvec_build.shipping import options


def test_an_empty_path_is_refused() -> None:
    assert options.check_path("--output", "some/where") == Path("some/where")
    with pytest.raises(InputError, match="--output is empty: give a path"):
        options.check_path("--output", "")


def test_the_default_output_is_where_the_runtime_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert options.default_output() == tmp_path / "home" / "bundles"
    for name in ("HOME", "FIRSTVEC_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user that the user database does not know
    with pytest.raises(InputError, match="this user has no home folder: give --output FOLDER, or set FIRSTVEC_HOME"):
        options.default_output()
