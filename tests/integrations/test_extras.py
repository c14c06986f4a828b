"""Without its package, a module says which extra brings it."""

import subprocess
import sys

import pytest

REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == sys.argv[1]:
            raise ImportError(name)
        return None

sys.meta_path.insert(0, Refuse())
import m3_runtime.integrations
from m3_runtime import M3Error
try:
    __import__("m3_runtime.integrations." + sys.argv[2])
except M3Error as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [
        ("qdrant_client", "qdrant", "qdrant"),
        ("pymilvus", "milvus", "milvus"),
        ("scipy", "milvus", "milvus"),
        ("pyarrow", "lancedb", "lancedb"),
        ("psycopg", "pgvector", "pgvector"),
        ("langchain_core", "langchain", "langchain"),
        ("langchain_qdrant", "langchain_qdrant", "langchain-qdrant"),
        ("langchain_milvus", "langchain_milvus", "langchain-milvus"),
        ("llama_index", "llama_index", "llama-index"),
        ("llama_index", "llama_index_milvus", "llama-index-milvus"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_the_extra_is_named(package: str, module: str, extra: str):
    command = [sys.executable, "-c", REFUSE, package, module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f'pip install "m3-runtime[{extra}]"' in done.stdout
