"""Without its package, a module says which extra brings it."""

import json
import subprocess
import sys

import pytest

REFUSE = """
import json, os, sys

class Refuse:
    def __init__(self, package):
        self.package = package
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == self.package:
            raise ImportError(name)
        return None

import m3_runtime.integrations
from m3_runtime import M3Error

for package, module in json.loads(sys.argv[1]):
    child = os.fork()  # in which nothing is imported yet
    if child == 0:
        sys.meta_path.insert(0, Refuse(package))
        try:
            __import__("m3_runtime.integrations." + module)
        except M3Error as error:
            print(json.dumps([package, module, str(error)]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""

EXTRAS = {
    ("qdrant_client", "qdrant"): "qdrant",
    ("pymilvus", "milvus"): "milvus",
    ("scipy", "milvus"): "milvus",
    ("pyarrow", "lancedb"): "lancedb",
    ("psycopg", "pgvector"): "pgvector",
    ("langchain_core", "langchain"): "langchain",
    ("langchain_qdrant", "langchain_qdrant"): "langchain-qdrant",
    ("langchain_milvus", "langchain_milvus"): "langchain-milvus",
    ("llama_index", "llama_index"): "llama-index",
    ("llama_index", "llama_index_milvus"): "llama-index-milvus",
    ("haystack", "haystack"): "haystack",
}


@pytest.fixture(scope="module")
def said() -> dict[tuple[str, str], str]:
    """What each module says without its package."""
    command = [sys.executable, "-c", REFUSE, json.dumps(list(EXTRAS))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {(package, module): message for package, module, message in lines}


@pytest.mark.parametrize(("package", "module"), EXTRAS)
def test_the_extra_is_named(said: dict[tuple[str, str], str], package: str, module: str):
    assert f'pip install "m3-runtime[{EXTRAS[package, module]}]"' in said[package, module]
