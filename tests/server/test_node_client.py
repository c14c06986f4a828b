"""OpenAI's client for Node, against a real server."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from made_once import made_once
from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
PACKAGE = "openai@7.59.0"
MISSING = [name for name in ("node", "npm") if shutil.which(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} missing: install Node 20 or newer")


@pytest.fixture(scope="module")
def found(server, texts) -> dict:
    folder = made_once(ROOT / "out" / f"node-{PACKAGE}", install)
    request = {
        "url": server.url,
        "model": "tiny-random",
        "texts": texts,
        "bad": [[[9906, 1917]], ["a", None], ["a", "wort " * 20000]],
    }
    script = ROOT / "tests" / "environment" / "ask_server.cjs"
    env = {**os.environ, "NODE_PATH": str(folder / "node_modules")}
    return json.loads(run("node", str(script), text=json.dumps(request), env=env).splitlines()[-1])


def install(folder: Path) -> None:
    folder.mkdir()
    run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), PACKAGE)


def run(*words: str, text: str = "", env: dict | None = None) -> str:
    done = subprocess.run(
        words, input=text, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_gets_the_very_bits_of_the_encoder(found, encoder, texts):
    """It asks for base64 by itself, and decodes it."""
    expected = encoder.encode(texts).dense_vecs
    np.testing.assert_array_equal(np.array(found["by_itself"], np.float32), expected)
    np.testing.assert_array_equal(np.array(found["float"], np.float32), expected)


def test_it_understands_our_refusals(found):
    ids, null, long = found["refusals"]
    assert {refusal["kind"] for refusal in (ids, null, long)} == {"BadRequestError"}
    assert {refusal["status"] for refusal in (ids, null, long)} == {400}
    assert "check_embedding_ctx_length=False" in ids["message"]
    assert null["param"] == "input[1]"
    assert (long["code"], long["param"]) == ("context_length_exceeded", "input[1]")
