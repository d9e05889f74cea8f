"""The user's cache folder: where it is, and that what another user could have written there is not believed."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstvec.machine import cache
from tests.conftest import Fresh

VARIABLES = (
    "FIRSTVEC_CACHE",
    "FIRSTVEC_HOME",
    "FIRSTVEC_ARTIFACTS",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "HOME",
    "TMPDIR",
)
"""Everything in the environment that decides where firstvec reads and writes."""

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
xdg_only = pytest.mark.skipif(sys.platform == "darwin", reason="the XDG folders")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the cache folder, which is not there yet."""
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mode_of(path: Path) -> int:
    """Return the permissions of a path."""
    return stat.S_IMODE(path.stat().st_mode)


# --- Where it is -----------------------------------------------------------------------------------------------------


@xdg_only
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FIRSTVEC_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"FIRSTVEC_CACHE": "", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/firstvec"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/firstvec"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/firstvec"),
        ({"HOME": "/h"}, "/h/.cache/firstvec"),
    ],
)
def test_the_cache_folder_is_the_chosen_one_else_the_users(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_folder() == expected
    assert cache.path_of("verified", "x") == f"{expected}/verified/x"


def test_on_macos_the_cache_folder_is_in_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setattr(cache, "_defaults", {})
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_folder() == "/h/Library/Caches/firstvec"


# --- A user without a home -------------------------------------------------------------------------------------------


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take HOME and the user's entry away. Return the folder for temporary files."""

    def unknown(_uid: int) -> None:
        raise KeyError("the user database does not know this user")

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(cache, "_defaults", {})
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def own_folder(temporary: Path) -> Path:
    """Return the cache folder of a user without a home."""
    return temporary / f"firstvec-{os.geteuid()}"


def test_a_user_without_a_home_has_a_cache_folder_among_the_temporary_ones(homeless: Path) -> None:
    assert cache.home_folder() is None
    assert cache.cache_folder() == str(own_folder(homeless))
    assert cache.cache_problem() is None


def test_without_tmpdir_the_temporary_folder_is_tmp(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR")
    # Another user of this machine may have made a folder of that name. Then the path is one that cannot be written.
    assert cache.cache_folder() in (f"/tmp/firstvec-{os.geteuid()}", "/dev/null/firstvec")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_the_cache_folder_of_a_user_without_a_home_is_private(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    previous = os.umask(umask)
    try:
        cache.put_marker(cache.path_of("verified", "x"))
    finally:
        os.umask(previous)
    assert mode_of(own_folder(homeless)) == mode_of(own_folder(homeless) / "verified") == 0o700
    monkeypatch.setattr(cache, "_defaults", {})  # as in the next process
    assert cache.cache_folder() == str(own_folder(homeless))
    assert cache.has_marker(cache.path_of("verified", "x"))
    assert cache.cache_problem() is None


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_temporary_folder_that_others_can_write_is_not_used(homeless: Path, mode: int) -> None:
    own_folder(homeless).mkdir()
    own_folder(homeless).chmod(mode)
    assert cache.cache_folder() == "/dev/null/firstvec"
    cache.put_marker(cache.path_of("verified", "x"))
    assert not cache.has_marker(cache.path_of("verified", "x"))
    assert list(own_folder(homeless).iterdir()) == []
    assert f"{own_folder(homeless)} was made or can be written by another user" in str(cache.cache_problem())


def test_a_link_in_place_of_the_temporary_folder_is_not_followed(homeless: Path) -> None:
    (homeless / "private").mkdir(mode=0o700)
    for target in ("private", "nowhere"):
        own_folder(homeless).symlink_to(target)
        assert cache.cache_folder() == "/dev/null/firstvec"
        assert "by another user" in str(cache.cache_problem())
        own_folder(homeless).unlink()
        cache._defaults.clear()


@pytest.fixture
def public() -> Iterator[Path]:
    """Make a folder that other users can reach, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="firstvec-test-", dir="/tmp"))
    folder.chmod(0o755)
    for name, mode in {"tmp": 0o1777, "work": 0o777, "home": 0o755}.items():
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    yield folder
    shutil.rmtree(folder)


UNKNOWN_UID = 54321
BECOME_UNKNOWN = f"""
import json, os, pwd, sys
from firstvec.bundle import metadata, store
from firstvec.machine import cache
# The interpreter's own folders may be closed to the other user, so everything is imported before.
public, *arguments = sys.argv[1:]
def become_unknown():
    for name in {VARIABLES!r}:
        os.environ.pop(name, None)
    os.environ["TMPDIR"] = public + "/tmp"
    os.chdir(public + "/work")
    os.umask(0)
    os.setgroups([])
    os.setgid({UNKNOWN_UID})
    os.setuid({UNKNOWN_UID})
    assert os.path.expanduser("~") == "~"
"""


def as_unknown(fresh: Fresh, public: Path, code: str, *arguments: object) -> Any:
    """Run code in a process that can become a user whom the user database does not know. Return what it prints."""
    return json.loads(fresh(BECOME_UNKNOWN + code, public, *arguments).stdout)


@root_only
def test_an_unknown_user_without_a_home_gets_a_private_cache_and_no_data_folder(public: Path, fresh: Fresh) -> None:
    code = """
become_unknown()
metadata.ModelMetadata.from_cache("org/model")
cache.put_marker(cache.path_of("verified", "x"))
print(json.dumps([cache.cache_folder(), cache.cache_problem(), store.data_folder(), store.search_path()]))
"""
    folder, problem, data_folder, search_path = as_unknown(fresh, public, code)
    assert folder == str(public / "tmp" / f"firstvec-{UNKNOWN_UID}")
    assert (problem, data_folder) == (None, None)
    assert not any(place.endswith("/bundles") or "~" in place for place in search_path)
    assert list((public / "work").iterdir()) == []  # no folder named ~
    for made in (Path(folder), Path(folder, "verified")):
        assert (made.stat().st_uid, mode_of(made)) == (UNKNOWN_UID, 0o700)


@root_only
def test_an_unknown_user_without_a_home_loads_a_model_and_the_load_is_remembered(
    public: Path, tiny_built: Path, fresh: Fresh
) -> None:
    bundle = public / "tiny-bert"
    shutil.copytree(tiny_built, bundle)
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    time.sleep(0.06)  # a file that was written a moment ago is not remembered
    code = """
from firstvec import OptimizedEmbeddingLoader
def load():
    loader = OptimizedEmbeddingLoader(*arguments, device="cpu", output="list")
    vector = loader.get_provider().embed_query("text")
    return [len(vector), loader.report()["verification"], loader.report()["self_test"]]
os.environ["FIRSTVEC_CACHE"] = public + "/roots-cache"
as_root = load()
become_unknown()
print(json.dumps([as_root, load(), load()]))
"""
    new, remembered = [32, "hashed now", "passed now"], [32, "remembered", "passed before"]
    assert as_unknown(fresh, public, code, bundle) == [new, new, remembered]
    assert list((public / "work").iterdir()) == []
    folder = public / "tmp" / f"firstvec-{UNKNOWN_UID}"
    assert sorted(path.name for path in folder.iterdir()) == ["manifests", "self-tested", "verified"]


@root_only
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_a_folder_that_another_user_made_for_the_unknown_user_is_not_believed(
    public: Path, fresh: Fresh, mode: int
) -> None:
    folder = public / "tmp" / f"firstvec-{UNKNOWN_UID}"
    (folder / "verified").mkdir(parents=True)
    (folder / "verified" / "x").touch()
    for each in (folder / "verified", folder):
        each.chmod(mode)
    code = """
become_unknown()
marker = cache.path_of("verified", "x")
before = cache.has_marker(marker)
cache.put_marker(marker)
print(json.dumps([cache.cache_folder(), before, cache.has_marker(marker), cache.cache_problem()]))
"""
    chosen, before, after, problem = as_unknown(fresh, public, code)
    assert (chosen, before, after) == ("/dev/null/firstvec", False, False)
    assert f"{folder} was made or can be written by another user" in problem
    assert "set FIRSTVEC_CACHE to a folder that only this user can write" in problem
    assert [path.name for path in folder.rglob("*")] == ["verified", "x"]


@root_only
def test_with_a_read_only_home_the_problem_is_named_and_nothing_is_remembered(public: Path, fresh: Fresh) -> None:
    code = """
become_unknown()
os.environ["HOME"] = public + "/home"
marker = cache.path_of("verified", "x")
cache.put_marker(marker)
print(json.dumps([cache.cache_folder(), cache.has_marker(marker), cache.cache_problem()]))
"""
    folder, is_remembered, problem = as_unknown(fresh, public, code)
    assert (folder, is_remembered) == (str(public / "home" / ".cache" / "firstvec"), False)
    assert problem == (
        f"{public / 'home'} cannot be written, so every start verifies and tests again; "
        "set FIRSTVEC_CACHE to a folder that only this user can write"
    )
    assert list((public / "home").iterdir()) == []


# --- What stops it ---------------------------------------------------------------------------------------------------


def test_a_cache_folder_that_can_be_made_or_is_private_is_no_problem(folder: Path) -> None:
    assert cache.cache_problem() is None
    cache.put_marker(cache.path_of("verified", "x"))
    assert cache.cache_problem() is None


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_the_umask_is_no_problem(folder: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        cache.put_marker(cache.path_of("verified", "x"))
    finally:
        os.umask(previous)
    assert cache.has_marker(cache.path_of("verified", "x"))
    assert cache.cache_problem() is None


def test_a_cache_folder_that_others_can_write_is_no_problem_as_long_as_the_folders_in_it_are_private(
    folder: Path,
) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    cache.put_marker(cache.path_of("verified", "x"))
    assert cache.has_marker(cache.path_of("verified", "x"))
    assert cache.cache_problem() is None


@pytest.mark.parametrize("kind", ["manifests", "metadata", "self-tested", "verified"])
def test_a_folder_of_markers_that_others_can_write_is_a_problem(folder: Path, kind: str) -> None:
    cache.put_marker(cache.path_of(kind, "x"))
    (folder / kind).chmod(0o770)
    assert not cache.has_marker(cache.path_of(kind, "x"))
    assert str(cache.cache_problem()).startswith(f"{folder / kind} can be written by others, so what it holds is not")


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_a_file_in_place_of_the_cache_folder_is_a_problem(folder: Path, mode: int) -> None:
    folder.touch(mode)
    assert str(cache.cache_problem()).startswith(f"{folder} cannot be written, so every start verifies")
    cache.put_marker(cache.path_of("verified", "x"))
    assert folder.is_file()


def test_a_cache_folder_below_dev_null_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTVEC_CACHE", "/dev/null/cache")
    assert str(cache.cache_problem()).startswith("/dev/null cannot be written")


# --- Files and markers -----------------------------------------------------------------------------------------------


def test_a_file_keeps_its_identity_until_it_is_written_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a")
    first = cache.file_identity(path.stat())
    assert cache.file_identity(path.stat()) == first
    assert cache.identity_text(first) == "-".join(f"{number:x}" for number in first)
    time.sleep(0.06)
    path.write_bytes(b"b")
    second = cache.file_identity(path.stat())
    (tmp_path / "other").write_bytes(b"b")
    (tmp_path / "other").replace(path)
    assert len({first, second, cache.file_identity(path.stat())}) == 3


def test_a_file_is_settled_a_moment_after_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    written = time.monotonic()
    if not cache.is_settled((tmp_path / "file").stat()):
        assert time.monotonic() - written < 1
    time.sleep(0.06)
    assert cache.is_settled((tmp_path / "file").stat())


@pytest.mark.parametrize(
    ("folder", "path", "lasts"),
    [
        ("/tmp/_MEIk3x9", "/tmp/_MEIk3x9/firstvec_bundles/m/model.fvw", False),  # a one-file app
        ("/tmp/_MEIk3x9", "/opt/app/bundle/model.fvw", True),
        ("/tmp/_MEIk3x9", "/tmp/_MEIk3x90/model.fvw", True),
        ("/opt/app/_internal", "/opt/app/_internal/firstvec_bundles/m/model.fvw", True),  # a folder app
        (None, "/opt/app/bundle/model.fvw", True),
    ],
)
def test_what_a_one_file_app_unpacks_does_not_last(
    monkeypatch: pytest.MonkeyPatch, folder: str | None, path: str, lasts: bool
) -> None:
    if folder is not None:
        monkeypatch.setattr(sys, "_MEIPASS", folder, raising=False)
    assert cache.will_last(path) is lasts


def test_a_marker_is_there_once_it_was_put_there(folder: Path) -> None:
    path = cache.path_of("verified", "x")
    assert not cache.has_marker(path)
    for _ in range(2):
        cache.put_marker(path)
        assert cache.has_marker(path)
    assert not cache.has_marker(cache.path_of("verified", "y"))
    assert mode_of(folder / "verified" / "x") == 0o600


def test_a_marker_that_is_touched_gets_the_time_of_now(folder: Path) -> None:
    path = cache.path_of("verified", "x")
    cache.put_marker(path)
    os.utime(path, (1, 1))
    assert cache.has_marker(path, touch=False)
    assert os.stat(path).st_mtime == 1
    assert cache.has_marker(path)
    assert os.stat(path).st_mtime > time.time() - 60


def test_a_marker_in_a_folder_of_somebody_else_is_not_believed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache.path_of("verified", "x")
    cache.put_marker(path)
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    assert not cache.has_marker(path)


# --- Notes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0", b"note", bytes(range(256)) * 31])
def test_a_note_is_read_as_it_was_written(folder: Path, data: bytes) -> None:
    path = cache.path_of("metadata", "x")
    assert cache.read_note(path) is None
    for _ in range(2):
        cache.write_note(path, data)
        assert cache.read_note(path) == data
    assert [each.name for each in (folder / "metadata").iterdir()] == ["x"]
    assert (mode_of(folder / "metadata"), mode_of(folder / "metadata" / "x")) == (0o700, 0o600)


def test_a_note_of_more_than_64_kib_is_not_written(folder: Path) -> None:
    path = cache.path_of("metadata", "x")
    cache.write_note(path, bytes(65532))
    assert cache.read_note(path) == bytes(65532)
    cache.write_note(path, b"\1" * 65533)
    assert cache.read_note(path) == bytes(65532)


def test_a_note_of_more_than_64_kib_is_not_believed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache.path_of("metadata", "x")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_MOST_OF_NOTE", 1 << 20)
        cache.write_note(path, b"\1" * 65533)
        assert cache.read_note(path) == b"\1" * 65533
    assert cache.read_note(path) is None


@pytest.mark.parametrize("data", [b"a note", b"a longer note with zeros \0\0\0\0 in it"])
def test_any_flipped_bit_missing_end_or_added_byte_of_a_note_is_noticed(folder: Path, data: bytes) -> None:
    path = Path(cache.path_of("metadata", "x"))
    cache.write_note(str(path), data)
    content = path.read_bytes()
    assert cache.read_note(str(path)) == content[4:] == data
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert cache.read_note(str(path)) is None
    for other in (*(content[:length] for length in range(len(content))), content + b"\0", b"\0" + content):
        path.write_bytes(other)
        assert cache.read_note(str(path)) is None


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_note_that_others_could_have_written_is_not_read(folder: Path, mode: int) -> None:
    path = cache.path_of("metadata", "x")
    cache.write_note(path, b"note")
    (folder / "metadata").chmod(mode)
    assert cache.read_note(path) is None


def test_a_full_disk_leaves_no_half_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache.path_of("metadata", "x")
    cache.write_note(path, b"an old note")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    cache.write_note(path, b"a new note, which is longer")
    assert cache.read_note(path) == b"an old note"
    assert [each.name for each in (folder / "metadata").iterdir()] == ["x"]


def test_a_pipe_in_place_of_a_note_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "notes" / "note")
    assert cache.read_note(str(tmp_path / "notes" / "note")) is None


def test_where_nothing_can_be_written_nothing_is_remembered_and_nothing_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "file" / "cache"))
    path = cache.path_of("metadata", "x")
    cache.write_note(path, b"note")
    cache.put_marker(path)
    assert cache.read_note(path) is None
    assert not cache.has_marker(path)
