"""What is refused, with which status, and in which words. The server goes on as if nothing had been."""

import hashlib
import json
import time
from pathlib import Path

import httpx2
import pytest
from running import events, running

from patience import wait_until

DEEP = "[" * 100_000


def raw(server, body: bytes, path: str = "/embed"):
    return server.client.post(path, content=body, headers={"content-type": "application/json"})


@pytest.fixture(autouse=True)
def still_works(server):
    yield
    assert server.post("/embed", {"inputs": "still here"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"inputs": "a"', "the body is not JSON"),
        (b'{"inputs": "\xff\xfe"}', "the body is not JSON"),
        (b'{"inputs": "\\ud800"}', "the body is not JSON"),
        (b'{"inputs": NaN}', "the body is not JSON"),
        (b'{"inputs": ' + DEEP.encode(), "the body is not JSON"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "the body is not JSON"),
        (b'{"inputs": 1e999}', "inputs must be a text"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"", "body"),
        (b"{}", "inputs: Field required"),
    ],
    ids=["cut", "utf8", "surrogate", "nan", "deep", "digits", "infinite", "list", "null", "nothing", "empty"],
)
def test_bad_json_is_422(server, body, message):
    answer = raw(server, body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "Validation"), answer.text
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/embed", {"inputs": ["a", 5]}, "inputs[1] must be a text or a list of token ids, got a number"),
        ("/embed", {"inputs": [[5, "a"]]}, "inputs[0][1] must be a token id, got a string"),
        ("/embed", {"inputs": [5, True]}, "inputs[1] must be a token id, got a boolean"),
        ("/embed", {"inputs": [5, -1]}, "inputs[0][1] is -1, which is no token id"),
        ("/embed", {"inputs": [[7], [10**30]]}, "inputs[1][0] is 1000000000000000000000000000000, which is no token"),
        ("/embed", {"inputs": {"a": 1}}, "inputs must be a text, a list of texts, or token ids"),
        ("/embed", {"inputs": []}, "inputs must hold at least one text"),
        ("/embed", {"inputs": "a", "normalize": False}, "normalize must be true or left out"),
        ("/embed", {"inputs": "a", "truncation_direction": "Left"}, "truncation_direction must be Right"),
        ("/embed", {"inputs": "a", "truncate": "yes"}, "truncate: Input should be a valid boolean"),
        ("/rerank", {"query": "a", "texts": ["b", None]}, "texts[1]: Input should be a valid string"),
        ("/rerank", {"query": "a", "texts": []}, "texts: List should have at least 1 item"),
        ("/rerank", {"query": "a", "texts": ["b"], "weights": [1, 0.3, 1]}, "weights: expected an object with named "),
        ("/rerank", {"query": "a", "texts": ["b"], "weights": {"dense": -1}}, "weights.dense: Input should be"),
        ("/m3/encode", {"texts": "a", "heads": ["dense", "best"]}, "heads[1]: Input should be 'dense', 'sparse'"),
        ("/m3/encode", {"texts": "a", "max_length": 10**6}, "max_length is 1000000, but the model takes at most"),
        ("/m3/encode", {"texts": "a", "batch": 3}, "batch: Extra inputs are not permitted"),
        ("/m3/encode", {"texts": "a", "colbert_dtype": "int2"}, "'float32', 'float16', 'int8', 'int4' or 'binary'"),
        ("/m3/encode", {"texts": "a", "colbert_dim": 10**6}, "colbert_dim must be a number from 1 to"),
        ("/m3/encode", {"texts": "a", "colbert_pool": 0}, "colbert_pool: Input should be greater than or equal to 1"),
        ("/m3/encode", {"texts": "a", "heads": ["dense"], "colbert_dtype": "int8"}, "colbert_dtype is of ColBERT"),
        ("/m3/encode", {"texts": "a", "heads": ["sparse"], "colbert_pool": 2}, "colbert_pool is of ColBERT"),
        ("/m3/encode", {"texts": "a", "heads": ["colbert"], "dimensions": 8}, "dimensions is of dense"),
    ],
)
def test_wrong_fields_are_422_and_named(server, path, body, message):
    answer = server.post(path, body)
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["error"]


def test_zero_weights_are_422(server):
    zero = {"dense": 0, "sparse": 0, "colbert": 0}
    answer = server.post("/rerank", {"query": "a", "texts": ["b"], "weights": zero})
    assert answer.status_code == 422
    assert "sum to 0" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ["a"] * 41}, "the request has 41 texts, the limit is 40; send it in parts"),
        ({"inputs": ["a", "wort " * 9000], "truncate": False}, "inputs[1] has"),
        ({"inputs": "a" * 300_000}, "the body is too large, the limit is 262144 bytes"),
    ],
    ids=["texts", "tokens", "bytes"],
)
def test_too_much_is_413(server, body, message):
    answer = server.post("/embed", body)
    assert (answer.status_code, answer.json()["error_type"]) == (413, "TooLarge"), answer.text
    assert message in answer.json()["error"]


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"])
def test_bad_json_is_found_whatever_its_type_is_called(server, kind):
    for body in (b'{"inputs": "\\ud800"}', b'{"inputs": ' + DEEP.encode(), b'{"inputs": NaN}'):
        answer = server.client.post("/embed", content=body, headers={"content-type": kind})
        assert answer.status_code == 422
        assert "the body is not JSON" in answer.json()["error"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a"] * 41, "the request has 41 texts, the limit is 40"),
        ("a" * 16_385, "the texts have 16385 characters, the limit is 16384; send them in parts"),
    ],
    ids=["texts", "characters"],
)
def test_too_much_to_show_is_413(server, inputs, message):
    answer = server.post("/tokenize", {"inputs": inputs})
    assert answer.status_code == 413
    assert message in answer.json()["error"]


def test_fifty_megabytes_are_refused_unread(server):
    before = server.resident_mib()
    text = json.dumps({"inputs": ["x" * 1000] * 50_000}).encode()
    answer = raw(server, text)
    assert answer.status_code == 413
    answer = server.client.post(
        "/embed", content=(text[i : i + 65536] for i in range(0, len(text), 65536)),
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert answer.status_code == 413  # chunked: its size is not announced
    assert server.resident_mib() - before < 20


def test_a_body_that_does_not_come_is_408(server):
    with server.connection() as line:
        line.sendall(
            b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        answer = b""
        while b"the body did not arrive within 5 s" not in answer:
            part = line.recv(65536)  # head and body may come apart
            assert part, answer
            answer += part
        assert b" 408 " in answer.splitlines()[0]


def test_what_is_no_http_does_no_harm(server):
    with server.connection() as line:
        line.sendall(b"\x16\x03\x01 hello \xff\xfe\r\n\r\n")
        assert b" 400 " in line.recv(65536).splitlines()[0]


def test_a_deadline_that_has_passed_is_504(server):
    body = {"inputs": ["wort " * 100] * 40, "truncate": True}
    answer = server.post("/embed", body, **{"x-m3-deadline-ms": "1"})
    assert answer.status_code in (429, 504)
    assert int(answer.headers["retry-after"]) >= 1
    assert "1" in answer.json()["error"]
    answer = server.post("/embed", {"inputs": "a"}, **{"x-m3-deadline-ms": "soon"})
    assert answer.status_code == 422
    assert "x-m3-deadline-ms must be a whole number of milliseconds" in answer.json()["error"]


def test_unknown_paths_and_methods(server):
    assert server.client.get("/nothing").json()["error_type"] == "NotFound"
    assert server.client.get("/embed").status_code == 405
    assert server.client.head("/health").status_code == server.client.head("/ready").status_code == 200
    page = server.client.get("/metrics").text
    assert "/nothing" not in page


def test_no_text_is_logged(server):
    secret, before = "Geheimnis Zungenwurst", len(server.log())

    def lines() -> list[dict[str, object]]:
        return [line for line in server.log()[before:] if line.get("route") == "/info"]

    server.post("/embed", {"inputs": secret})
    server.post("/embed", {"inputs": [secret, 5]})
    server.post("/rerank", {"query": secret, "texts": [secret, None]})
    server.client.get("/info", params={"q": secret})
    wait_until(lines)  # written when answers have been sent, in any order
    assert [(line["event"], line["status"]) for line in lines()] == [("request", 200)]
    log = server.log_file.read_text()
    assert "Geheimnis" not in log and "Zungenwurst" not in log


def test_keys(tiny_bundle: Path, tmp_path: Path):
    keys = tmp_path / "keys.txt"
    keys.write_text("# those who may\nshop 0123456789abcdef-shop\n\n0123456789abcdef-other\n")
    words = ("--variant", "onnx-fp32", "--api-key-file", str(keys), "--metrics-port", "0")
    with running(tiny_bundle, tmp_path, *words) as server:

        def status(key: str | None, path: str = "/embed") -> int:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return server.post(path, {"inputs": "a"}, **headers).status_code

        assert [status(key) for key in ("0123456789abcdef-shop", "0123456789abcdef-other")] == [200, 200]
        assert [status(key) for key in (None, "x", "wrong", "0123456789abcdef-sho", "shop")] == [401] * 5
        assert status(None, "/") == 401
        assert server.client.get("/metrics").status_code == 401
        (line,) = events(server, "metrics_port", 1)
        assert "m3_requests_total" in httpx2.get(line["url"], trust_env=False).text
        assert server.client.get("/health").status_code == server.client.get("/ready").status_code == 200
        nameless = f"key {hashlib.sha256(b'0123456789abcdef-other').hexdigest()[:8]}"  # wherever it stands in the file
        wait_until(lambda: {"shop", nameless} <= {line.get("client") for line in server.log()})
        assert "0123456789abcdef" not in server.log_file.read_text()

        keys.write_text("0123456789abcdef-new\n")
        wait_until(lambda: status("0123456789abcdef-new") == 200)
        assert status("0123456789abcdef-shop") == 401

        keys.unlink()  # those that were read last still hold
        time.sleep(1.2)
        assert status("0123456789abcdef-new") == 200
