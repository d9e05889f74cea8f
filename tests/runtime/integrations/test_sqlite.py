from __future__ import annotations

import re
import sqlite3
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from firstvec import (
    BundleNotFound,
    InputError,
    IntegrityError,
    ManifestError,
    OptimizedEmbeddingLoader,
)
from firstvec.integrations.sqlite import register
from tests.conftest import REPOSITORY, Fresh, edit_manifest

BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (REPOSITORY / "docs/sqlite.md").read_text("utf-8"), re.DOTALL)
needs_apsw = pytest.mark.skipif(find_spec("apsw") is None, reason="apsw is not installed")
needs_vec = pytest.mark.skipif(find_spec("sqlite_vec") is None, reason="sqlite-vec is not installed")


@pytest.fixture
def connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


def one(connection: sqlite3.Connection, sql: str, *parameters: object) -> object:
    ((value,),) = connection.execute(sql, parameters).fetchall()
    return value


# Vectors


def test_a_table_is_filled_and_searched_in_sql(bundle: Path, connection: sqlite3.Connection) -> None:
    register(connection, str(bundle))
    connection.executescript("""
        CREATE TABLE passage(text, vector);
        INSERT INTO passage(text) VALUES ('The cat sleeps on the sofa.'), ('The parser reads the file again.'),
            ('Interest rates rose in spring.');
        UPDATE passage SET vector = embed(text);
    """)
    found = connection.execute(
        "SELECT text FROM passage ORDER BY vec_distance(vector, embed_query(?))", ["how does it read a file?"]
    ).fetchall()
    assert found[0] == ("The parser reads the file again.",)
    texts, blobs = zip(*connection.execute("SELECT text, vector FROM passage"), strict=True)
    expected = OptimizedEmbeddingLoader(str(bundle)).get_provider().embed_batch(texts)
    assert {len(blob) for blob in blobs} == {4 * 384}
    np.testing.assert_allclose(np.frombuffer(b"".join(blobs), "<f4").reshape(3, 384), expected, atol=1e-6)


def test_documents_and_queries_get_their_prompts(tiny_bundle: Path, connection: sqlite3.Connection) -> None:
    prompts = {"query": "question: ", "document": "passage: "}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts=prompts))
    register(connection, str(tiny_bundle))
    provider = OptimizedEmbeddingLoader(str(tiny_bundle), output="buffer").get_provider()
    assert one(connection, "SELECT embed('a cat')") == bytes(provider.encode("a cat", prompt="passage: "))
    assert one(connection, "SELECT embed_query('a cat')") == bytes(provider.encode("a cat", prompt="question: "))


def test_null_gives_null_and_the_empty_string_has_a_vector(tiny_built: Path, connection: sqlite3.Connection) -> None:
    register(connection, str(tiny_built))
    assert connection.execute("SELECT embed(NULL), embed_query(NULL), vec_distance(NULL, x'0000803f')").fetchall() == [
        (None, None, None)
    ]
    assert len(one(connection, "SELECT embed('')")) == 4 * 32  # type: ignore[arg-type]


def test_functions_are_deterministic(tiny_built: Path, connection: sqlite3.Connection) -> None:
    register(connection, str(tiny_built))
    # SQLite refuses such an index over other functions.
    connection.executescript("""
        CREATE TABLE passage(text);
        CREATE INDEX by_vector ON passage(embed(text), embed_query(text), vec_distance(embed(text), embed('x')));
        INSERT INTO passage VALUES ('a cat');
    """)


def test_two_models_are_two_names(tiny_built: Path, bundle: Path, connection: sqlite3.Connection) -> None:
    register(connection, str(tiny_built))
    register(connection, str(bundle), name="embed_large", strategy="quantized")
    lengths = (
        "SELECT length(embed('x')), length(embed_query('x')), length(embed_large('x')), length(embed_large_query('x'))"
    )
    assert connection.execute(lengths).fetchall() == [(128, 128, 1536, 1536)]


# vec_distance


def test_vec_distance_is_the_cosine_distance(connection: sqlite3.Connection, tiny_built: Path) -> None:
    register(connection, str(tiny_built))
    random = np.random.default_rng(0)
    for length in (0.001, 1, 1000):
        a, b = random.normal(size=(2, 384)).astype("<f4") * length
        expected = 1 - a.astype(float) @ b / np.linalg.norm(a.astype(float)) / np.linalg.norm(b.astype(float))
        assert one(connection, "SELECT vec_distance(?, ?)", a.data, b.data) == pytest.approx(expected, abs=1e-12)
        assert one(connection, "SELECT vec_distance(?, ?)", a.data, a.data) == pytest.approx(0, abs=1e-12)
        assert one(connection, "SELECT vec_distance(?, ?)", a.data, (-a).data) == pytest.approx(2, abs=1e-12)
    assert one(connection, "SELECT vec_distance(x'0000803f', x'00000000')") is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("x'0000', x'0000803f'", "a blob of 2 bytes"),
        ("x'0000803f', x''", "a blob of 0 bytes"),
        ("x'0000803f', '[1.0]'", "got str"),
        ("1, x'0000803f'", "got int"),
        ("x'0000803f', x'0000803f0000803f'", "1 and 2 components"),
    ],
)
def test_vec_distance_refuses_what_is_no_vector(
    arguments: str, reason: str, connection: sqlite3.Connection, tiny_built: Path
) -> None:
    failure = register(connection, str(tiny_built))
    with pytest.raises(sqlite3.OperationalError):
        connection.execute(f"SELECT vec_distance({arguments})")
    assert isinstance(failure.error, InputError)
    assert reason in str(failure.error)


# Errors


@pytest.mark.parametrize("value", ["5", "2.5", "x'6162'"])
def test_what_is_no_text_is_an_error(value: str, connection: sqlite3.Connection, tiny_built: Path) -> None:
    failure = register(connection, str(tiny_built))
    assert failure.error is None
    for function in ("embed", "embed_query"):
        failure.error = None
        with pytest.raises(sqlite3.OperationalError):
            connection.execute(f"SELECT {function}({value})")
        assert isinstance(failure.error, InputError)
    assert one(connection, "SELECT length(embed('x'))") == 128


def test_unknown_and_invalid_bundles_are_errors_at_once(tiny_bundle: Path, connection: sqlite3.Connection) -> None:
    with pytest.raises(BundleNotFound):
        register(connection, "no-such-model")
    (tiny_bundle / "firstvec.json").write_text("{}", "utf-8")
    with pytest.raises(ManifestError):
        register(connection, str(tiny_bundle))


def test_a_changed_bundle_is_an_error_until_it_is_restored(
    tiny_built: Path, tiny_bundle: Path, connection: sqlite3.Connection
) -> None:
    failure = register(connection, str(tiny_bundle))
    (tiny_bundle / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT embed('x')")
    assert isinstance(failure.error, IntegrityError)
    (tiny_bundle / "tokenizer.json").write_bytes((tiny_built / "tokenizer.json").read_bytes())
    assert len(one(connection, "SELECT embed('x')")) == 128  # type: ignore[arg-type]


def test_a_provider_that_somebody_closed_is_loaded_again(tiny_built: Path, connection: sqlite3.Connection) -> None:
    register(connection, str(tiny_built))
    vector = one(connection, "SELECT embed('x')")
    shared = OptimizedEmbeddingLoader.get_instance(str(tiny_built), "progressive", output="buffer")
    shared.get_provider().close()
    assert one(connection, "SELECT embed('x')") == vector


@pytest.mark.parametrize("name", ["", "a b;", "1st", 5, "length", "LENGTH"])
def test_a_name_that_is_no_name_of_a_new_function_is_refused(
    name: object, tiny_built: Path, connection: sqlite3.Connection
) -> None:
    with pytest.raises(InputError, match="name"):
        register(connection, str(tiny_built), name=name)  # type: ignore[arg-type]
    assert one(connection, "SELECT length('four')") == 4


def test_a_success_forgets_the_error_before_it(tiny_built: Path, connection: sqlite3.Connection) -> None:
    failure = register(connection, str(tiny_built))
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT embed(5)")
    assert isinstance(failure.error, InputError)
    one(connection, "SELECT length(embed('x'))")
    assert failure.error is None


def test_arguments_of_register_are_checked(tiny_built: Path, connection: sqlite3.Connection) -> None:
    with pytest.raises(InputError, match="str is not a connection"):
        register("file.db", str(tiny_built))
    with pytest.raises(InputError, match="strategy"):
        register(connection, str(tiny_built), strategy="soon")
    connection.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        register(connection, str(tiny_built))


# Processes and threads


def test_connections_of_all_threads_share_one_load(tiny_built: Path, tmp_path: Path) -> None:
    vectors: list[object] = []
    first = sqlite3.connect(tmp_path / "file.db")
    register(first, str(tiny_built))
    shared = OptimizedEmbeddingLoader.get_instance(str(tiny_built), output="buffer")
    assert not shared.is_loaded()  # registering loads nothing

    def work() -> None:
        own = sqlite3.connect(tmp_path / "file.db")
        register(own, str(tiny_built))
        vectors.extend(one(own, "SELECT embed(?)", f"text {number}") for number in range(50))
        own.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(vectors) == 200
    assert len({*vectors}) == 50
    assert shared.is_loaded()
    assert OptimizedEmbeddingLoader.get_instance(str(tiny_built), output="buffer") is shared


def test_a_forked_child_registers_its_own_connection(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import os, sqlite3, sys
from firstvec.integrations.sqlite import register

def embed():
    connection = sqlite3.connect(":memory:")
    register(connection, sys.argv[1])
    return connection.execute("SELECT hex(embed('a cat'))").fetchone()[0]

here = embed()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, embed().encode())
    os._exit(0)
os.close(writer)
print(os.read(reader, 10_000).decode() == here, os.wait()[1])
"""
    assert fresh(code, tiny_built).stdout == "True 0\n"


def test_nothing_is_imported_before_it_is_needed(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec.integrations.sqlite import register
print({"sqlite3", "apsw", "numpy", "firstvec.provider", "firstvec.bundle.store"} & {*sys.modules})
import sqlite3
connection = sqlite3.connect(":memory:")
register(connection, sys.argv[1])
print("firstvec.provider" in sys.modules)
connection.execute("SELECT vec_distance(embed('x'), embed_query('y'))").fetchall()
print("firstvec.provider" in sys.modules, "numpy" in sys.modules)
"""
    assert fresh(code, tiny_built).stdout.splitlines() == ["set()", "False", "True False"]


# apsw and sqlite-vec


@needs_apsw
def test_apsw_gets_the_same_vectors_and_raises_the_error_itself(tiny_bundle: Path, fresh: Fresh) -> None:
    code = """
import sqlite3, sys, apsw
from firstvec import InputError, IntegrityError, OptimizedEmbeddingLoader
from firstvec.integrations.sqlite import register

connections = [sqlite3.connect(":memory:"), apsw.Connection(":memory:")]
found = []
for connection in connections:
    failure = register(connection, sys.argv[1])
    values = "embed('a'), embed_query('b'), embed(NULL), vec_distance(embed('a'), embed('b'))"
    found.append([*connection.execute(f"SELECT {values}")])
print(found[0] == found[1])
for sql in ("SELECT embed(5)", "SELECT embed_query(x'00')", "SELECT vec_distance(1, 2)"):
    try:
        [*connection.execute(sql)]
    except InputError as error:
        print(failure.error is error)
OptimizedEmbeddingLoader.reset()
register(connection, sys.argv[1])
open(f"{sys.argv[1]}/tokenizer.json", "w").close()
try:
    [*connection.execute("SELECT embed('x')")]
except IntegrityError as error:
    print(error.file)
connection.close()
try:
    register(connection, sys.argv[1])
except apsw.ConnectionClosedError as error:
    print(type(error).__name__)
"""
    printed = fresh(code, tiny_bundle).stdout.splitlines()
    assert printed[:4] == ["True"] * 4
    assert printed[4].endswith("tokenizer.json")
    assert printed[5] == "ConnectionClosedError"


@needs_apsw
@needs_vec
def test_sqlite_vec_takes_the_blobs_and_agrees_with_vec_distance(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import sys, importlib.util, apsw
from firstvec.integrations.sqlite import register

database = apsw.Connection(":memory:")
database.enable_load_extension(True)
database.load_extension(importlib.util.find_spec("sqlite_vec").submodule_search_locations[0] + "/vec0")
register(database, sys.argv[1])
database.execute("CREATE TABLE text(text)")
database.executemany("INSERT INTO text VALUES (?)", [(f"text number {number}",) for number in range(50)])
database.execute("CREATE VIRTUAL TABLE passage USING vec0(text TEXT, vector FLOAT[32] distance_metric=cosine)")
database.execute("INSERT INTO passage(text, vector) SELECT text, embed(text) FROM text")
nearest = "SELECT text FROM passage WHERE vector MATCH embed_query('text number 7') AND k = 3 ORDER BY distance"
by_hand = "SELECT text FROM text ORDER BY vec_distance(embed(text), embed_query('text number 7')) LIMIT 3"
print([*database.execute(nearest)] == [*database.execute(by_hand)])
def distances(function):
    by_text = f"SELECT {function}(embed(text), embed('x')) FROM text"
    of_zeros = f"SELECT {function}(zeroblob(4), x'0000803f')"
    return [value for sql in (by_text, of_zeros) for value, in database.execute(sql)]
ours, theirs = distances("vec_distance"), distances("vec_distance_cosine")
print(max(abs(one - other) for one, other in zip(ours[:-1], theirs[:-1])) < 1e-6, ours[-1], theirs[-1])
print("numpy" in sys.modules)
"""
    assert fresh(code, tiny_built).stdout.splitlines() == ["True", "True None None", "False"]


# docs/sqlite.md


def documented(number: int) -> tuple[str, str]:
    """Return a program of the page, and the output that follows it."""
    programs = [index for index, (language, _) in enumerate(BLOCKS) if language == "python"]
    index = programs[number]
    return BLOCKS[index][1], BLOCKS[index + 1][1]


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=[needs_apsw, needs_vec]), 3])
def test_the_programs_print_what_is_documented(number: int, bundle: Path, fresh: Fresh) -> None:
    program, printed = documented(number)
    assert fresh(program).stdout == printed


def test_documented_rows_of_encode_iter_are_those_of_embed(bundle: Path, fresh: Fresh) -> None:
    program, _ = documented(2)
    program += """
from firstvec.integrations.sqlite import register
register(database, "all-MiniLM-L6-v2")
print(database.execute("SELECT count(*), max(abs(vec_distance(vector, embed(text)))) < 1e-6 FROM passage").fetchone())
"""
    assert fresh(program).stdout == "(1000, 1)\n"
