"""A bundle and the files of `firstvec embed` open in other tools as they are, without a conversion."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstvec import OptimizedEmbeddingLoader
from firstvec.bulk import embed
from firstvec.bundle.manifest import Manifest
from firstvec.text.tokenizer import open_tokenizer
from tests.conftest import REPOSITORY, Fresh
from tests.runtime.bulk.conftest import TEXTS, read_vectors, write_data_set


@pytest.fixture(scope="module")
def output(tiny_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interop")
    path = write_data_set(folder / "a.parquet")
    embed(path, folder / "out", model=tiny_built, id_column="id", keep=["text", "half"], shard_rows=10)
    embed(path, folder / "out.parquet", model=tiny_built, id_column="id", keep=["text", "half"], shard_rows=10)
    return folder


@pytest.fixture(scope="module")
def query(tiny_built: Path) -> np.ndarray:
    provider = OptimizedEmbeddingLoader(str(tiny_built)).get_provider()
    found: np.ndarray = provider.embed_query(TEXTS[7])
    return found


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_pyarrow(name: str, output: Path) -> None:
    table = pq.read_table(output / name)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    assert json.loads(table.schema.metadata[b"firstvec"])["model"] == "tiny-bert"
    assert table.num_rows == 23


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_pandas(name: str, output: Path) -> None:
    pandas: Any = pytest.importorskip("pandas", reason="the group interop is not installed")
    frame = pandas.read_parquet(output / name)
    assert frame["text"].tolist() == TEXTS
    np.testing.assert_array_equal(np.stack(frame["embedding"]), read_vectors(output / name))


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_polars(name: str, output: Path) -> None:
    polars: Any = pytest.importorskip("polars", reason="the group interop is not installed")
    frame = polars.read_parquet(output / "out" / "*.parquet" if name == "out" else output / name)
    assert frame.schema["embedding"] == polars.Array(polars.Float32, 32)
    np.testing.assert_array_equal(frame["embedding"].to_numpy(), read_vectors(output / name))


@pytest.mark.parametrize("name", ["out/*.parquet", "out.parquet"])
def test_duckdb(name: str, output: Path, query: np.ndarray) -> None:
    duckdb: Any = pytest.importorskip("duckdb", reason="the group interop is not installed")
    rows = duckdb.execute(
        "SELECT text, array_cosine_similarity(embedding::FLOAT[32], ?::FLOAT[32]) AS score "
        f"FROM read_parquet('{output / name}') ORDER BY score DESC LIMIT 3",
        [query.tolist()],
    ).fetchall()
    assert rows[0][0] == TEXTS[7]
    assert rows[0][1] == pytest.approx(1.0, abs=1e-5)


def test_sqlite_vec(output: Path, query: np.ndarray) -> None:
    # Python's own sqlite3 is often built without extensions.
    apsw: Any = pytest.importorskip("apsw", reason="the group interop is not installed")
    sqlite_vec: Any = pytest.importorskip("sqlite_vec", reason="the group interop is not installed")
    database = apsw.Connection(":memory:")
    database.enable_load_extension(True)
    sqlite_vec.load(database)
    database.execute("CREATE VIRTUAL TABLE texts USING vec0(embedding float[32])")
    table = pq.read_table(output / "out.parquet")
    for row, vector in zip(table["id"].to_pylist(), read_vectors(output / "out.parquet"), strict=True):
        database.execute("INSERT INTO texts(rowid, embedding) VALUES (?, ?)", (row, vector.tobytes()))
    found = database.execute("SELECT rowid FROM texts WHERE embedding MATCH ? AND k = 1", (query.tobytes(),))
    assert [*found] == [(7,)]
    database.close()


def test_lancedb(output: Path, query: np.ndarray, tmp_path: Path) -> None:
    lancedb: Any = pytest.importorskip("lancedb", reason="the group interop is not installed")
    database = lancedb.connect(tmp_path / "lance")
    table = database.create_table("texts", data=pq.read_table(output / "out"))
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    [hit] = table.search(query.tolist(), vector_column_name="embedding").limit(1).to_list()
    assert hit["text"] == TEXTS[7]


# A bundle in other libraries

LONG = "How do I reset the password of my account ? " * 40
"""400 words, and more tokens than all-MiniLM-L6-v2 takes."""


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "tiny-bert"])
def test_other_tokenizers_truncate_as_firstvec_does(name: str, request: pytest.FixtureRequest) -> None:
    import tokenizers

    transformers: Any = pytest.importorskip("transformers", reason="the toolchain is not installed")
    manifest = Manifest.read(request.getfixturevalue("bundle" if name == "all-MiniLM-L6-v2" else "tiny_built"))
    [expected] = open_tokenizer(manifest).tokenize([LONG])
    assert len(expected) == manifest.model.max_seq_length
    root = Path(manifest.root)
    assert tokenizers.Tokenizer.from_file(str(root / "tokenizer.json")).encode(LONG).ids == expected
    assert transformers.AutoTokenizer.from_pretrained(root)(LONG, truncation=True)["input_ids"] == expected


_FASTEMBED = """
import firstvec
import numpy as np

texts = sys.argv[1:]
found = np.stack([*embedding.embed(texts)])
expected = firstvec.get_embedding_provider("all-MiniLM-L6-v2").encode(texts)
tokens = [len(each.ids) for each in embedding.model.tokenizer.encode_batch([texts[0]])]
print(tokens, ((found * expected).sum(axis=1) > 0.9999).tolist())
"""


@pytest.mark.skipif(find_spec("fastembed") is None, reason="the extra bench-peers is not installed")
def test_fastembed_opens_a_bundle_as_ship_md_shows(bundle: Path, fresh: Fresh) -> None:
    page = (REPOSITORY / "docs" / "ship.md").read_text("utf-8")
    [program] = re.findall(r"```text\n(from fastembed .*?)```", page, re.DOTALL)
    program = program.replace("./artifacts/all-MiniLM-L6-v2", str(bundle))
    done = fresh(f"import sys\n{program}{_FASTEMBED}", LONG, "A short text.", HF_HUB_OFFLINE="1")
    assert done.stdout.splitlines()[-1] == "[256] [True, True]"
