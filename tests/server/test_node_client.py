"""OpenAI's client for Node, against a real server."""

import json

import numpy as np
import pytest

from node import ROOT, needs_node, npm_folder, run_node

PACKAGE = "openai@7.59.0"

pytestmark = needs_node


@pytest.fixture(scope="module")
def found(server, texts) -> dict:
    request = {
        "url": server.url,
        "model": "tiny-random",
        "texts": texts,
        "bad": [[[9906, 1917]], ["a", None], ["a", "wort " * 20000]],
    }
    script = ROOT / "tests" / "environment" / "ask_server.cjs"
    packages = npm_folder(PACKAGE, PACKAGE) / "node_modules"
    done = run_node(script, request=request, env={"NODE_PATH": str(packages)})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


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
