"""A bundle and the files of `firstvec embed` open in other tools as they are, without a conversion."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstvec import OptimizedEmbeddingLoader, ResourceProfile
from firstvec.bulk import embed
from firstvec.bundle.manifest import Manifest
from firstvec.text.tokenizer import open_tokenizer
from tests import browser
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


def test_onnxruntime_alone_computes_the_vector_as_ship_md_shows(bundle: Path, fresh: Fresh) -> None:
    page = (REPOSITORY / "docs" / "ship.md").read_text("utf-8")
    [program] = re.findall(r"```python\n(import onnxruntime\nfrom tokenizers.*?)```", page, re.DOTALL)
    program = program.replace("artifacts/all-MiniLM-L6-v2", str(bundle))
    done = fresh(f"{program}\nprint(vector.tolist())", ORT_DISABLE_TELEMETRY="1")
    provider = OptimizedEmbeddingLoader(str(bundle), artifact="onnx-fp32").get_provider()
    np.testing.assert_allclose(json.loads(done.stdout), provider.embed_query("how do I reset my password?"), atol=1e-5)


_FASTEMBED = """
import firstvec
import numpy as np

texts = sys.argv[1:]
found = np.stack([*embedding.embed(texts)])
expected = firstvec.get_embedding_provider("all-MiniLM-L6-v2").encode(texts)
tokens = [len(each.ids) for each in embedding.model.tokenizer.encode_batch([texts[0]])]
print(tokens, ((found * expected).sum(axis=1) > 0.9999).tolist())
"""


@pytest.mark.skipif(find_spec("fastembed") is None, reason="the group interop is not installed")
def test_fastembed_opens_a_bundle_as_ship_md_shows(bundle: Path, fresh: Fresh) -> None:
    page = (REPOSITORY / "docs" / "ship.md").read_text("utf-8")
    [program] = re.findall(r"```text\n(from fastembed .*?)```", page, re.DOTALL)
    program = program.replace("./artifacts/all-MiniLM-L6-v2", str(bundle))
    done = fresh(f"import sys\n{program}{_FASTEMBED}", LONG, "A short text.", HF_HUB_OFFLINE="1")
    assert done.stdout.splitlines()[-1] == "[256] [True, True]"


def test_chroma_s_default_function_cannot_run_a_bundle_as_ship_md_says(bundle: Path, tmp_path: Path) -> None:
    """The files lie where the function looks for them, so that it downloads nothing."""
    default: Any = pytest.importorskip("chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2")
    folder = tmp_path / "onnx"
    shutil.copytree(bundle / "onnx", folder, copy_function=lambda source, copy: Path(copy).symlink_to(source))
    for name in ("config.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt"):
        (folder / name).symlink_to(bundle / name)
    function = type("OnBundle", (default.ONNXMiniLM_L6_V2,), {"DOWNLOAD_PATH": tmp_path})()
    with pytest.raises(Exception, match=r"(?i)invalid (feed )?input name: ?token_type_ids"):
        function(["A short text."])


TRANSFORMERS_JS = "@huggingface/transformers@4.3.2"
"""It brings onnxruntime-node 1.30.0 and onnxruntime-web 1.31.0-dev."""


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which Node finds Transformers.js. npm downloads 150 MB, and the folder has 475 MB."""
    if not request.config.getoption("--faults"):
        pytest.skip("npm installs Transformers.js in make faults")
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    # The script of onnxruntime-node would fetch CUDA's provider.
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), TRANSFORMERS_JS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


def run_node(folder: Path, program: str, *arguments: object) -> Any:
    """Return what a program of JavaScript prints as JSON. It runs in a file of the folder with the packages."""
    path = folder / "program.mjs"
    path.write_text(program, "utf-8")
    done = subprocess.run(
        ["node", str(path), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def program_of_ship_md(bundle: Path) -> str:
    page = (REPOSITORY / "docs" / "ship.md").read_text("utf-8")
    [program] = re.findall(r"```text\n(import { AutoModel.*?)```", page, re.DOTALL)
    return str(program).replace('"./artifacts/"', json.dumps(f"{bundle.parent}/"))


TEXTS_FOR_NODE = ["A short text.", LONG]
_ARGUMENTS = "const texts = JSON.parse(process.argv[2]);\n"
_PRINT = "console.log(JSON.stringify(sentence_embedding.tolist()));\n"
_PIPELINE = """
import { pipeline } from "@huggingface/transformers";
const extractor = await pipeline("feature-extraction", "all-MiniLM-L6-v2", options);
const pooled = await extractor(texts, { pooling: "mean", normalize: true });
let error = "";
try {
  await AutoModel.from_pretrained("all-MiniLM-L6-v2", { dtype: "q8" });
} catch (caught) {
  error = caught.message;
}
const ids = inputs.input_ids.tolist().map((row) => row.map(Number));
console.log(JSON.stringify([ids, sentence_embedding.tolist(), pooled.tolist(), error]));
"""
_WEB = """
import * as ort from "onnxruntime-web/wasm";
import { readFile } from "node:fs/promises";
const [folder, name, ids] = process.argv.slice(2);
const read = async (path) => new Uint8Array(await readFile(`${folder}/onnx/${path}`));
ort.env.wasm.numThreads = 1;
const externalData = [{ path: `${name}_data`, data: await read(`${name}_data`) }];
const session = await ort.InferenceSession.create(await read(name), { externalData });
const numbers = JSON.parse(ids);
const dims = [1, numbers.length];
const input_ids = new ort.Tensor("int64", BigInt64Array.from(numbers.map(BigInt)), dims);
const attention_mask = new ort.Tensor("int64", new BigInt64Array(numbers.length).fill(1n), dims);
const { sentence_embedding } = await session.run({ input_ids, attention_mask });
console.log(JSON.stringify([...sentence_embedding.data]));
"""


def test_transformers_js_opens_a_bundle_as_ship_md_shows(bundle: Path, node: Path) -> None:
    texts = json.dumps(TEXTS_FOR_NODE)
    ids, found, pooled, error = run_node(node, _ARGUMENTS + program_of_ship_md(bundle) + _PIPELINE, texts)
    expected = OptimizedEmbeddingLoader(str(bundle), artifact="onnx-fp32").get_provider().encode(TEXTS_FOR_NODE)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(pooled, found, atol=1e-5)
    assert "onnx/model_quantized.onnx" in error
    # A text that is too long loses its last special token, as ship.md says.
    [right] = open_tokenizer(Manifest.read(bundle)).tokenize([LONG])
    assert ids[1][:-1] == right[:-1]
    assert ids[1][-1] != right[-1]
    assert 0.999 < np.dot(found[1], expected[1]) < 0.9999


@pytest.mark.skipif("avx2" not in ResourceProfile.detect().isa, reason="this machine has no AVX2")
def test_transformers_js_takes_an_int8_artifact_by_its_file(bundle: Path, node: Path) -> None:
    program = program_of_ship_md(bundle).replace('dtype: "fp32"', 'dtype: "fp32", model_file_name: "model_qint8_avx2"')
    [vector] = run_node(node, _ARGUMENTS + program + _PRINT, json.dumps(TEXTS_FOR_NODE[:1]))
    provider = OptimizedEmbeddingLoader(str(bundle), artifact="onnx-int8-avx2").get_provider()
    assert np.dot(vector, provider.embed_query(TEXTS_FOR_NODE[0])) > 0.9999


@pytest.mark.parametrize("name", ["model", "model_qint8_avx2"])
def test_onnxruntime_web_computes_in_webassembly(name: str, bundle: Path, node: Path) -> None:
    provider = OptimizedEmbeddingLoader(str(bundle), artifact="onnx-fp32").get_provider()
    [ids] = open_tokenizer(Manifest.read(bundle)).tokenize(["A short text."])
    found = np.array(run_node(node, _WEB, bundle, f"{name}.onnx", json.dumps([int(each) for each in ids])))
    assert found @ provider.embed_query("A short text.") > (0.99999 if name == "model" else 0.99)


_PAGE = """
<link rel="icon" href="data:,">
<script type="importmap">
{"imports": {
  "onnxruntime-web/webgpu": "/node_modules/onnxruntime-web/dist/ort.bundle.min.mjs",
  "onnxruntime-common": "/node_modules/onnxruntime-common/dist/esm/index.js",
  "@huggingface/transformers": "/node_modules/@huggingface/transformers/dist/transformers.web.js"
}}
</script>
<script type="module">
addEventListener("error", (event) => { window.result ??= { error: event.message }; });
const texts = ["A short text."];
PROGRAM
window.result = { vectors: sentence_embedding.tolist() };
</script>
"""


@pytest.mark.skipif(bool(browser.IS_MISSING), reason=browser.IS_MISSING)
@pytest.mark.parametrize("option", ["use_external_data_format: true", "use_external_data_format: false"])
def test_transformers_js_opens_a_bundle_in_a_browser(option: str, bundle: Path, node: Path, tmp_path: Path) -> None:
    """Everything comes from a server on this machine. Without the option the weights are missing, as ship.md says."""
    # Otherwise the page would load WebAssembly from a server of others.
    local = 'env.backends.onnx.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";\nenv.allowLocalModels = true;\n'
    program = (
        program_of_ship_md(bundle)
        .replace(json.dumps(f"{bundle.parent}/"), '"/models/"')
        .replace("use_external_data_format: true", option)
        .replace("const tokenizer", f"{local}const tokenizer")
    )
    (tmp_path / "index.html").write_text(_PAGE.replace("PROGRAM", program), "utf-8")
    (tmp_path / "node_modules").symlink_to(node / "node_modules")
    (tmp_path / "models").symlink_to(bundle.parent)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    with browser.start() as window:
        window.open(f"http://127.0.0.1:{server.server_port}/index.html")
        for _ in range(600):
            if (result := window.run("return window.result ?? null")) is not None:
                break
            time.sleep(0.2)
    server.shutdown()
    server.server_close()
    if option.endswith("false"):
        assert "model.onnx_data" in result["error"]
    else:
        expected = (
            OptimizedEmbeddingLoader(str(bundle), artifact="onnx-fp32").get_provider().embed_query("A short text.")
        )
        np.testing.assert_allclose(result["vectors"], [expected], atol=1e-5)


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Say nothing, because pytest shows what is said."""
