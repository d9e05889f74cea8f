"""`firstvec.ray.Embedder`: alone, where it needs no Ray, and as the actor of Ray Data's `map_batches`."""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from firstvec.errors import BundleNotFound, InputError, NoCompatibleArtifact, RowError
from firstvec.ray import Embedder
from tests.conftest import Fresh
from tests.runtime.bulk.conftest import TEXTS
from tests.runtime.bulk.test_tables import numbers_of

MAP_BATCHES = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
import numpy, pyarrow, ray, ray.data
from firstvec.ray import Embedder

bundle, texts, missing = json.loads(sys.argv[1])
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
assert Embedder(bundle)(pyarrow.table({"text": texts})).num_rows == len(texts)  # in a program, not in an actor
table = pyarrow.table({"id": range(len(texts)), "text": texts})

def embed(table, cpus=1, **options):
    return ray.data.from_arrow(table).map_batches(
        Embedder, fn_constructor_kwargs=options, batch_format="pyarrow", batch_size=4, num_cpus=cpus,
        compute=ray.data.ActorPoolStrategy(size=1),
    )

results = {}
found = pyarrow.concat_tables(ray.get(embed(table, model=bundle, dtype="float32").to_arrow_refs())).sort_by("id")
results["vectors"] = found["embedding"].to_pylist()
results["metadata"] = json.loads(found.schema.metadata[b"firstvec"])["artifact"]
results["type"] = str(found.schema.field("embedding").type)

class Counts(Embedder):
    def __call__(self, table):
        return pyarrow.table({"threads": [self._provider._sessions._owned.session._options.threads]})

def count_threads(cpus):
    dataset = ray.data.from_arrow(table).map_batches(
        Counts, fn_constructor_kwargs={"model": bundle}, batch_format="pyarrow", batch_size=None, num_cpus=cpus,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    return dataset.take_all()[0]["threads"]

results["threads"] = [count_threads(0.5), count_threads(2)]
try:
    embed(table, model=missing).materialize()
except Exception as error:
    results["missing"] = str(error)
bad = pyarrow.table({"id": [0], "text": pyarrow.array([None], pyarrow.string())})
try:
    embed(bad, model=bundle).materialize()
except Exception as error:
    results["bad"] = str(error)
ray.shutdown()
print(json.dumps(results))
"""


def test_a_table_gets_the_vectors_of_encode(tiny_built: Path, vectors: np.ndarray) -> None:
    embedder = Embedder(tiny_built, keep=["n"])
    found = embedder(pa.table({"text": TEXTS, "n": range(23)}))
    assert found.column_names == ["n", "embedding"]
    np.testing.assert_array_equal(numbers_of(found), vectors)


def test_wrong_use_is_a_typed_error_that_names_the_node(tiny_built: Path) -> None:
    with pytest.raises(BundleNotFound, match=r"^on the node .*: no bundle for model 'no-such'") as missing:
        Embedder("no-such")
    copy = pickle.loads(pickle.dumps(missing.value))
    assert (type(copy), str(copy), copy.name) == (BundleNotFound, str(missing.value), "no-such")
    with pytest.raises(NoCompatibleArtifact, match="arm64"):
        Embedder(tiny_built, artifact="onnx-int8-arm64")
    with pytest.raises(InputError, match="unexpected keyword argument 'modle'"):
        Embedder(tiny_built, modle="x")
    with pytest.raises(InputError, match=r"^on the node .*: unknown dtype 'int9'"):
        Embedder(tiny_built, dtype="int9")
    with pytest.raises(InputError, match='batch_format="pyarrow"'):
        Embedder(tiny_built)({"text": np.array(TEXTS)})  # type: ignore[arg-type]
    with pytest.raises(RowError, match=r"^on the node .*: the table: row 0"):
        Embedder(tiny_built, text_column="body")(pa.table({"body": pa.array([None], pa.string())}))


@pytest.mark.native
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
def test_ray_data_gives_the_vectors_of_encode(tiny_built: Path, vectors: np.ndarray, fresh: Fresh) -> None:
    done = fresh(MAP_BATCHES, json.dumps([str(tiny_built), TEXTS, "/no/such/bundle"]), check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_array_equal(np.array(results["vectors"], np.float32), vectors)
    assert results["metadata"] == "native-fp32"
    assert results["type"].endswith("[32]")
    assert results["threads"] == [1, 2]  # of actors with half a processor and with two
    assert "BundleNotFound" in results["missing"]
    assert "on the node" in results["missing"]
    assert "RowError" in results["bad"]
    assert "row 0" in results["bad"]


def test_importing_it_imports_no_ray(fresh: Fresh) -> None:
    fresh("import sys, firstvec.ray; assert 'ray' not in sys.modules, sys.modules['ray']")
