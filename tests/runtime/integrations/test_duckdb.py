from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Fresh, edit_manifest

pytestmark = pytest.mark.skipif(
    find_spec("duckdb") is None or find_spec("pyarrow") is None, reason="duckdb or pyarrow is not installed"
)

BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (REPOSITORY / "docs/duckdb.md").read_text("utf-8"), re.DOTALL)


def test_a_table_is_filled_and_searched_in_sql(bundle: Path, fresh: Fresh) -> None:
    code = """
import sys, duckdb, numpy
from firstvec import OptimizedEmbeddingLoader
from firstvec.integrations.duckdb import register

database = duckdb.connect()
register(database, sys.argv[1])
database.execute("SET enable_progress_bar = false")
text = "'passage ' || repeat('word ', i % 4) || i"
database.execute(f"CREATE TABLE passage AS SELECT i, {text} AS text FROM range(2100) r(i)")  # more than DuckDB's 2,048
database.execute("INSERT INTO passage VALUES (2100, NULL), (2101, ''), (2102, 'The parser reads the file again.')")
database.execute("ALTER TABLE passage ADD COLUMN vector FLOAT[384]")
database.execute("UPDATE passage SET vector = embed(text)")
nearest = "SELECT text FROM passage ORDER BY array_cosine_similarity(vector, embed_query(?)) DESC NULLS LAST LIMIT 1"
print(database.execute(nearest, ["how does it read a file?"]).fetchall())
print(database.execute("SELECT i FROM passage WHERE vector IS NULL").fetchall())
rows = database.execute("SELECT text, vector FROM passage WHERE vector IS NOT NULL ORDER BY i").fetchall()
texts, vectors = zip(*rows)
expected = OptimizedEmbeddingLoader(sys.argv[1]).get_provider().embed_batch(texts)
print(len(texts), numpy.abs(numpy.array(vectors, "f4") - expected).max() < 1e-6)
"""
    assert fresh(code, bundle).stdout.splitlines() == [
        "[('The parser reads the file again.',)]",
        "[(2100,)]",
        "2102 True",
    ]


def test_prompts_types_threads_and_names(tiny_bundle: Path, bundle: Path, fresh: Fresh) -> None:
    prompts = {"query": "question: ", "passage": "passage: "}
    edit_manifest(tiny_bundle, lambda document: document["model"].update(prompts=prompts))
    code = """
import sys, threading, time, duckdb
from firstvec import OptimizedEmbeddingLoader
from firstvec.integrations.duckdb import register

database = duckdb.connect()
register(database, sys.argv[1])
provider = OptimizedEmbeddingLoader(sys.argv[1], output="list").get_provider()

def one(sql, *parameters, connection=database):
    return connection.execute(sql, parameters).fetchone()[0]

print(one("SELECT typeof(embed('a cat'))"), one("SELECT typeof(embed_query('a cat'))"))
database.execute("SET enable_progress_bar = false")
print([*one("SELECT embed('a cat')")] == provider.encode("a cat", prompt="passage: "))
print([*one("SELECT embed_query(?)", "a cat")] == provider.encode("a cat", prompt="question: "))
print(one("SELECT embed(NULL)"), one("SELECT count(embed(text)) FROM (SELECT NULL::VARCHAR AS text FROM range(3000))"))
print(database.execute("SELECT embed(text) FROM (SELECT 'a' AS text) WHERE random() > 1").fetchall())

# The files are read by several threads, and so are the cursors.
for number in range(4):
    database.execute(f"COPY (SELECT i, 'text ' || i AS text FROM range({number * 500}, {number * 500 + 500}) r(i)) "
                     f"TO '{sys.argv[2]}/{number}.parquet'")
query = f"SELECT embed(text) FROM '{sys.argv[2]}/*.parquet' ORDER BY i"
expected = [tuple(row) for row in provider.embed_batch([f"text {number}" for number in range(2000)])]
results = []
def work():
    results.append([row for row, in database.cursor().execute(query).fetchall()])
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print([result == expected for result in results])

register(database, sys.argv[3], name="embed_large", strategy="quantized")
print(one("SELECT len(embed_large('a')) + len(embed_large_query('a')) + len(embed('a'))"))
register(duckdb, sys.argv[1])
print(one("SELECT len(embed('a'))", connection=duckdb))
"""
    printed = fresh(code, tiny_bundle, tiny_bundle.parent, bundle).stdout.splitlines()
    assert printed == ["FLOAT[32] FLOAT[32]", "True", "True", "None 0", "[]", "[True, True, True]", "800", "32"]


def test_constants_are_computed_once(tiny_built: Path, fresh: Fresh) -> None:
    """DuckDB folds a call with constants while it plans the statement, so the plan does not name the function."""
    code = """
import sys, duckdb
from firstvec.integrations.duckdb import register

database = duckdb.connect()
register(database, sys.argv[1])
for argument in ("'a cat'", "text"):
    plan = database.execute(f"EXPLAIN SELECT embed({argument}) FROM (SELECT i::VARCHAR AS text FROM range(9) r(i))")
    print("embed(" in plan.fetchall()[0][1])
"""
    assert fresh(code, tiny_built).stdout.splitlines() == ["False", "True"]


def test_errors(tiny_bundle: Path, fresh: Fresh) -> None:
    code = """
import sys, duckdb
from firstvec import OptimizedEmbeddingLoader
from firstvec.integrations.duckdb import register

def show(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        print(type(error).__name__, str(error).partition("\\n")[0])

bundle = sys.argv[1]
database = duckdb.connect()
show(register, database, "no-such-model")
show(register, "file.duckdb", bundle)
show(register, database, bundle, strategy="soon")
register(database, bundle)
show(register, database, bundle)
for value in ("5", "'a'::BLOB", "['a']", "'a', 'b'"):
    show(database.execute, f"SELECT embed({value})")
tokenizer = open(f"{bundle}/tokenizer.json", "rb").read()
open(f"{bundle}/tokenizer.json", "w").close()
show(database.execute, "SELECT embed('a cat')")
open(f"{bundle}/tokenizer.json", "wb").write(tokenizer)
for _ in range(2):
    print(len(database.execute("SELECT embed('a cat')").fetchall()[0][0]), "components")
    OptimizedEmbeddingLoader.get_instance(bundle, "progressive", output="buffer").get_provider().close()
database.close()
show(register, database, bundle)
show(database.execute, "SELECT embed('a cat')")
OptimizedEmbeddingLoader.reset()
open(f"{bundle}/firstvec.json", "w").close()
show(register, duckdb.connect(), bundle)
"""
    printed = fresh(code, tiny_bundle).stdout.splitlines()
    expected = [
        "BundleNotFound no bundle for model 'no-such-model' was found",
        "InputError str is not a connection of duckdb",
        "InputError .*strategy",
        "NotImplementedException .*'embed' is already created",
        *["BinderException .*No function matches .*embed"] * 4,
        "InvalidInputException .*IntegrityError: .*tokenizer.json is not the file that was built",
        *["32 components"] * 2,
        *["ConnectionException .*[Cc]losed"] * 2,
        "ManifestError .*firstvec.json",
    ]
    assert len(printed) == len(expected), "\n".join(printed)
    for line, pattern in zip(printed, expected, strict=True):
        assert re.match(pattern, line), (line, pattern)


def test_nothing_is_imported_before_it_is_needed(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec.integrations.duckdb import register
print({"duckdb", "pyarrow", "numpy", "firstvec.provider", "firstvec.bundle.store"} & {*sys.modules})
import duckdb
database = duckdb.connect()
register(database, sys.argv[1])
print({"pyarrow", "firstvec.provider"} & {*sys.modules})
"""
    assert fresh(code, tiny_built).stdout.splitlines() == ["set()", "set()"]


@pytest.mark.parametrize("package", ["pyarrow", "numpy"])
def test_a_package_may_be_missing(package: str, tiny_built: Path, fresh: Fresh) -> None:
    code = """
import sys, duckdb
from firstvec import MissingDependency
from firstvec.integrations.duckdb import register

sys.modules[sys.argv[2]] = None
try:
    register(duckdb.connect(), sys.argv[1])
except MissingDependency as error:
    print(error)
"""
    printed = fresh(code, tiny_built, package).stdout
    assert f"needs {package}, which is not installed: pip install 'firstvec[duckdb]'" in printed


def test_the_documented_program_prints_what_is_documented(bundle: Path, fresh: Fresh) -> None:
    (index,) = [index for index, (language, _) in enumerate(BLOCKS) if language == "python"]
    assert fresh(BLOCKS[index][1]).stdout == BLOCKS[index + 1][1]


def test_a_name_that_cannot_be_registered_leaves_no_function(tiny_built: Path, fresh: Fresh) -> None:
    code = """
import sys
import duckdb
from firstvec import InputError
from firstvec.integrations.duckdb import register

connection = duckdb.connect()
for name in ("", "a b;", 5):
    try:
        register(connection, sys.argv[1], name=name)
    except InputError as error:
        assert "is not the name of a function" in str(error)
    else:
        raise AssertionError(name)
connection.create_function("m_query", lambda text: text, ["VARCHAR"], "VARCHAR")
try:
    register(connection, sys.argv[1], name="m")
except duckdb.Error as error:
    assert "m_query" in str(error)
else:
    raise AssertionError("m_query was replaced")
connection.remove_function("m_query")
register(connection, sys.argv[1], name="m")
print(len(connection.execute("SELECT m('a cat')").fetchone()[0]))
"""
    assert fresh(code, tiny_built).stdout == "32\n"
