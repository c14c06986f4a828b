"""Request ids, traces, timing headers, origins and path prefixes, asked of the app in this process."""

import asyncio
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from m3_runtime import M3Encoder
from m3_runtime.cli import main
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.server import tracing
from m3_runtime.server.app import create_app
from m3_runtime.server.logs import JsonLines, LogFormat, LogLevel, LogSettings, TextLines, log_to_stderr
from m3_runtime.server.service import Service
from m3_runtime.server.settings import ServedBundle, ServerSettings
from m3_runtime.server.tracing import TIMING_HEADERS
from patience import PATIENCE_S

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
KEY = "a-key-of-enough-characters"
EMBED = {"inputs": ["some words", "more words than before"]}

Scenario = Callable[[httpx2.AsyncClient], Coroutine[Any, Any, None]]


def serve(encoder: M3Encoder, scenario: Scenario, base: str = "http://here", **settings: Any) -> None:
    """Run a scenario against the app with these settings."""

    async def served() -> None:
        service = Service(encoder, ServerSettings(ServedBundle(Path("unused"), 1), **settings))
        transport = httpx2.ASGITransport(create_app(service))
        async with asyncio.timeout(PATIENCE_S), httpx2.AsyncClient(transport=transport, base_url=base) as client:
            await scenario(client)

    asyncio.run(served())


@contextmanager
def logged(formatter: logging.Formatter) -> Iterator[list[str]]:
    """The lines that a formatter makes of what is logged."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler, log = Handler(), logging.getLogger("m3_runtime")
    handler.setFormatter(formatter)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def test_every_answer_has_an_id_and_its_log_line_the_same(encoder):
    asked = (
        ("POST", "/embed", EMBED, 200), ("POST", "/embed", {"inputs": 1.5}, 422), ("POST", "/nothing", EMBED, 404),
        ("DELETE", "/embed", None, 405), ("GET", "/health", None, 200), ("GET", "/", None, 200),
        ("POST", "/embed", {"inputs": ["word"] * 3000}, 413),
    )  # fmt: skip

    async def scenario(client: httpx2.AsyncClient) -> None:
        for number, (method, path, body, status) in enumerate(asked):
            given = await client.request(method, path, json=body, headers={"x-request-id": f"mine-{number}"})
            assert (given.status_code, given.headers["x-request-id"]) == (status, f"mine-{number}"), path
            made = await client.request(method, path, json=body)
            assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])

    with logged(JsonLines()) as lines:
        serve(encoder, scenario)
    found = [json.loads(line) for line in lines]
    ids = [line["request_id"] for line in found if line["event"] == "request"]
    assert ids[::2] == ["mine-0", "mine-1", "mine-2", "mine-3", "mine-5", "mine-6"]  # probes are not logged
    assert len(set(ids)) == len(ids)


def test_an_id_that_could_break_a_log_line_is_replaced(encoder):
    async def scenario(client: httpx2.AsyncClient) -> None:
        for wanted in ("", "a blank", "line\tend", "x" * 129, "Ü", '"quoted"'):
            answer = await client.get("/info", headers=[(b"x-request-id", wanted.encode("latin-1"))])
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"]), wanted

    serve(encoder, scenario)


def test_two_ids_are_none(encoder):
    async def scenario(client: httpx2.AsyncClient) -> None:
        two = [("x-request-id", "one"), ("x-request-id", "two"), ("traceparent", TRACEPARENT), ("traceparent", "x")]
        answer = await client.get("/info", headers=two)
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "traceparent" not in answer.headers

    serve(encoder, scenario)


def test_a_trace_is_taken_over(encoder):
    asked = {
        TRACEPARENT: True,
        f"01-{TRACE}-{SPAN}-00": True,
        f"ff-{TRACE}-{SPAN}-01": False,
        f"00-{'0' * 32}-{SPAN}-01": False,
        f"00-{TRACE}-{'0' * 16}-01": False,
        f"00-{TRACE.upper()}-{SPAN}-01": False,
        f"00-{TRACE}-{SPAN}": False,
    }

    async def scenario(client: httpx2.AsyncClient) -> None:
        for given, is_taken in asked.items():
            answer = await client.post("/embed", json=EMBED, headers={"traceparent": given})
            # the version spoken here
            assert answer.headers.get("traceparent") == (f"00{given[2:]}" if is_taken else None), given

    with logged(JsonLines()) as lines:
        serve(encoder, scenario)
    for (given, is_taken), line in zip(asked.items(), map(json.loads, lines), strict=True):
        assert line.get("trace_id") == (TRACE if is_taken else None), given
        assert line.get("parent_span_id") == (SPAN if is_taken else None), given


def test_ids_do_not_leak_between_requests_at_the_same_time(encoder):
    async def scenario(client: httpx2.AsyncClient) -> None:
        names = [f"request-{i}" for i in range(20)]
        answers = await asyncio.gather(
            *(client.post("/embed", json=EMBED, headers={"x-request-id": name}) for name in names)
        )
        assert [answer.headers["x-request-id"] for answer in answers] == names

    with logged(JsonLines()) as lines:
        serve(encoder, scenario)
    assert {json.loads(line)["request_id"] for line in lines} == {f"request-{i}" for i in range(20)}


def test_answers_say_what_was_computed_and_how_long_it_took(encoder):
    async def scenario(client: httpx2.AsyncClient) -> None:
        asked = {
            "/embed": EMBED,
            "/": EMBED,
            "/embed_sparse": EMBED,
            "/embed_all": EMBED,
            "/v1/embeddings": {
                "input": EMBED["inputs"],
                "model": (await client.get("/v1/models")).json()["data"][0]["id"],
            },
            "/rerank": {"query": EMBED["inputs"][0], "texts": EMBED["inputs"][1:]},
            "/similarity": {"inputs": {"source_sentence": EMBED["inputs"][0], "sentences": EMBED["inputs"][1:]}},
            "/m3/encode": {"texts": EMBED["inputs"]},
        }
        for path, body in asked.items():
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            said = {name: answer.headers[name] for name in TIMING_HEADERS}
            assert said["x-compute-type"] == "cpu"
            assert int(said["x-compute-characters"]) == sum(map(len, EMBED["inputs"])), path
            assert int(said["x-compute-tokens"]) == int(encoder.encode(EMBED["inputs"]).token_counts.sum()), path
            parts = [int(said[f"x-{part}-time"]) for part in ("tokenization", "queue", "inference")]
            assert sum(parts) <= int(said["x-total-time"]) + 2, path  # each is rounded
            refused = await client.post(path, json={})
            assert refused.status_code == (400 if path.startswith("/v1/") else 422), path
            assert not set(TIMING_HEADERS) & set(refused.headers), path

    serve(encoder, scenario)


def test_inference_takes_the_time_that_the_engine_takes(encoder, monkeypatch):
    """One slow run: it shows as inference of the request that has it, and as queue time of the one that waits."""

    async def texts_that_wait(client: httpx2.AsyncClient) -> float:
        return float(re.search(r"^m3_queue_texts (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)[1])

    runs, slow = threading.Event(), threading.Event()

    async def scenario(client: httpx2.AsyncClient) -> None:
        first = asyncio.create_task(client.post("/embed", json=EMBED))
        assert await asyncio.to_thread(runs.wait, PATIENCE_S)
        before = await texts_that_wait(client)
        second = asyncio.create_task(client.post("/embed", json=EMBED))
        while await texts_that_wait(client) < before + 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.15)
        slow.set()
        one, two = (answer.headers for answer in await asyncio.gather(first, second))
        assert int(one["x-inference-time"]) >= 150
        assert int(two["x-queue-time"]) >= 150
        # the run is no part of its own queue time
        assert int(one["x-queue-time"]) + int(one["x-inference-time"]) <= int(one["x-total-time"]) + 2

    run = encoder.engine.run

    def waiting(*arguments: Any, **more: Any) -> Any:
        runs.set()
        assert slow.wait(PATIENCE_S)
        return run(*arguments, **more)

    monkeypatch.setattr(type(encoder.engine), "run", lambda _, *a, **m: waiting(*a, **m))
    serve(encoder, scenario)


def test_pages_of_other_origins_are_kept_out_by_default_and_let_in_as_set(encoder):
    preflight = {
        "origin": "https://one.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }

    async def closed(client: httpx2.AsyncClient) -> None:
        answer = await client.post("/embed", json=EMBED, headers={"origin": "https://one.example"})
        assert "access-control-allow-origin" not in answer.headers
        assert (await client.options("/embed", headers=preflight)).status_code == 405

    async def opened(client: httpx2.AsyncClient) -> None:
        asked = await client.options("/embed", headers=preflight)  # without a key, as browsers do
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://one.example"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        assert "x-request-id" in asked.headers
        for headers in ({}, {"authorization": f"Bearer {KEY}"}):
            answer = await client.post("/embed", json=EMBED, headers={"origin": "https://one.example", **headers})
            assert answer.status_code == (200 if headers else 401)
            assert answer.headers["access-control-allow-origin"] == "https://one.example"
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = await client.post("/embed", json=EMBED, headers={"origin": "https://two.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = await client.options("/embed", headers=preflight | {"origin": "https://two.example"})
        assert refused.status_code == 400

    serve(encoder, closed)
    serve(encoder, opened, cors_allow_origins=("https://one.example",), api_key=KEY)


@pytest.mark.parametrize("sent", ["", "/search/m3"])
def test_behind_a_prefix_whether_or_not_the_proxy_takes_it_off(encoder, sent):
    async def scenario(client: httpx2.AsyncClient) -> None:
        assert (await client.post(f"{sent}/embed", json=EMBED)).status_code == 200
        assert (await client.get(f"{sent}/health")).status_code == 200
        assert '<base href="/search/m3/">' in (await client.get(f"{sent}/")).text
        assert "/search/m3/openapi.json" in (await client.get(f"{sent}/docs")).text
        page = (await client.get(f"{sent}/openapi.json")).json()
        assert page["servers"] == [{"url": "/search/m3"}]
        assert "/embed" in page["paths"]
        wrong = await client.post(f"{sent}/v1/nothing", json={})
        assert (wrong.status_code, "error" in wrong.json()) == (404, True)
        assert (await client.get(f"{sent}/searching")).status_code == 404

    with logged(JsonLines()) as lines:
        serve(encoder, scenario, root_path="/search/m3")
    assert "/embed" in [json.loads(line)["route"] for line in lines]  # and not "other"


def test_every_route_is_found_behind_the_prefix_of_the_docs(encoder):
    """/m3 begins a path of our own, /m3/encode, and yet no path means two things."""

    async def scenario(client: httpx2.AsyncClient) -> None:
        page = (await client.get("/m3/openapi.json")).json()
        asked = {path.replace("{model}", "tiny-random"): list(methods) for path, methods in page["paths"].items()}
        others = {"/": ["get", "post"], "/docs": ["get"], "/ping": ["get"], "/invocations": ["post"],
                  "/embeddings": ["post"], "/v1/v1/embeddings": ["post"], "/embed/": ["post"]}  # fmt: skip
        for path, methods in {**asked, **others}.items():
            for method in methods:
                sent = {"json": {}} if method == "post" else {}
                found = [await client.request(method, f"{prefix}{path}", **sent) for prefix in ("", "/m3")]
                statuses = {answer.status_code for answer in found}
                assert statuses in ([{200}] if method == "get" else [{400}, {422}]), (method, path)
                assert found[0].headers["content-type"] == found[1].headers["content-type"]
        for path in "/m3", "/m3//health", "/m3/v1/models/", "/m3/m3/encode":
            assert (await client.get(path)).status_code == (405 if "encode" in path else 200), path
        assert (await client.get("/m3x/health")).status_code == 404

    serve(encoder, scenario, root_path="/m3")


@pytest.mark.parametrize("prefix", ["/v1", "/v2", "/embed", "/docs", "/ping", "/models", "/reranker", "/v1/models"])
def test_a_prefix_with_which_a_path_would_mean_two_things_is_refused(encoder, prefix):
    async def scenario(client: httpx2.AsyncClient) -> None:
        pass

    with pytest.raises(InputError, match="--root-path"):
        serve(encoder, scenario, root_path=prefix)


def test_pages_of_other_origins_see_every_header_that_says_something(encoder):
    """Browsers hide what the list leaves out."""
    origin = {"origin": "https://one.example"}
    long = "word " * 600
    asked = (
        ("/embed", {"inputs": long}), ("/m3/encode", {"texts": "a", "format": "npz"}), ("/m3/encode", {"texts": long}),
        ("/rerank", {"query": "a", "texts": [long]}), ("/v1/embeddings", {"input": 5}), ("/tokenize", {"inputs": "a"}),
    )  # fmt: skip
    seen: set[str] = set()

    async def scenario(client: httpx2.AsyncClient) -> None:
        for path, body in asked:
            answer = await client.post(path, json=body, headers=origin | {"traceparent": TRACEPARENT})
            shown = answer.headers["access-control-expose-headers"].lower().split(", ")
            said = {name for name in answer.headers if name.startswith("x-") or name in ("retry-after", "traceparent")}
            assert said <= set(shown), path
            assert "retry-after" in shown
            seen.update(said)

    serve(encoder, scenario, cors_allow_origins=("*",))
    assert {"x-m3-truncated", "x-m3-truncated-texts", "x-m3-scored-by", "x-m3-space-id", "x-m3-problem"} <= seen


@pytest.mark.parametrize(
    ("header", "one", "other"),
    [
        ("x-m3-deadline-ms", "1000", "600000"),
        ("content-type", "application/json", "text/plain"),
        ("authorization", f"Bearer {KEY}", "Bearer another-key-of-enough-characters"),
    ],
)
def test_a_header_that_says_two_things_is_refused(encoder, header, one, other):
    """And so is none that says the same twice: some proxies do that."""

    async def scenario(client: httpx2.AsyncClient) -> None:
        usual = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        rest = [(name, value) for name, value in usual.items() if name != header]
        body = json.dumps(EMBED).encode()
        answer = await client.post("/embed", content=body, headers=[*rest, (header, one), (header, one)])
        assert answer.status_code == 200
        answer = await client.post("/embed", content=body, headers=[*rest, (header, one), (header, other)])
        assert answer.status_code == 422
        assert f"the header {header} is sent 2 times with different values" in answer.json()["error"]

    serve(encoder, scenario, api_key=KEY)


def test_a_deadline_that_is_no_number_is_refused(encoder):
    async def scenario(client: httpx2.AsyncClient) -> None:
        for wanted in ("", "0", "-1", "1.5", "one", "1" * 10, "9" * 5000):
            answer = await client.post("/embed", json=EMBED, headers={"x-m3-deadline-ms": wanted})
            assert answer.status_code == 422, wanted
            assert "a whole number of milliseconds above 0" in answer.json()["error"]

    serve(encoder, scenario)


def test_a_key_of_the_settings_stands_beside_those_of_a_file(encoder, tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("named a-key-that-stands-in-a-file\n")

    async def scenario(client: httpx2.AsyncClient) -> None:
        for key, status in ((KEY, 200), ("a-key-that-stands-in-a-file", 200), ("a-key-of-nobody-at-all", 401)):
            answer = await client.get("/info", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status

    with logged(JsonLines()) as lines:
        serve(encoder, scenario, api_key=KEY, api_key_file=file)
    assert [json.loads(line)["client"] for line in lines][1] == "named"
    assert KEY not in "".join(lines)
    assert KEY not in repr(ServerSettings(ServedBundle(Path("unused"), 1), api_key=KEY))


def test_lines_for_people_stay_lines(encoder):
    async def scenario(client: httpx2.AsyncClient) -> None:
        await client.post("/embed", json=EMBED, headers={"x-request-id": "mine"})

    with logged(TextLines()) as lines:
        serve(encoder, scenario)
        logging.getLogger("m3_runtime").warning("odd", extra={"reason": 'two words\nand "lines"'})
    assert re.fullmatch(
        r"\S+ info request method=POST route=/embed status=200 client=\S+ duration_ms=[\d.]+ request_id=mine", lines[0]
    )
    assert lines[1].endswith(r'warning odd reason="two words\nand \"lines\""')


def test_the_level_is_ours_alone(capsys):
    """Other packages log texts and connections at info; they begin at warnings, whatever we are set to."""
    ours = logging.getLogger("m3_runtime")
    log_to_stderr(LogSettings(LogLevel.DEBUG, LogFormat.TEXT))
    ours.debug("of ours", extra={"_of_another_package": 1})  # Ray adds such a field to every record of its process
    logging.getLogger("another").info("of another")
    log_to_stderr(LogSettings(LogLevel.ERROR))
    ours.warning("too quiet")
    logging.getLogger("another").error("loud")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("debug of ours")
    assert json.loads(second)["event"] == "loud"


class Collector(HTTPServer):
    """Takes traces as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collecting)
        self.bodies: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Collecting(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def spans_of(collector: Collector) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for path, body in collector.bodies:
        assert path == "/v1/traces"
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {item.key: item.value.string_value for item in of_resource.resource.attributes}
            assert names["service.name"] == "a-name"
            found += [span for scope in of_resource.scope_spans for span in scope.spans]
    return found


def test_spans_go_to_the_collector(encoder, collector, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "a-name")
    answers = []

    async def served() -> None:
        settings = ServerSettings(ServedBundle(Path("unused"), 1), otlp_endpoint=collector.url)
        tracer, send_last_spans = tracing.open_tracer(settings.otlp_endpoint)
        monkeypatch.setattr("m3_runtime.server.app.open_tracer", lambda _: (tracer, send_last_spans))
        transport = httpx2.ASGITransport(create_app(Service(encoder, settings)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            answers.append(await client.post("/embed", json=EMBED, headers={"traceparent": TRACEPARENT}))
            answers.append(await client.post("/embed", json={}))
            for probe in "/health", "/ping", "/ready/", "/reranker//metrics":
                assert (await client.get(probe)).status_code == 200
            await client.post("/v1/v1/embeddings/", json={})
            await client.get("/somebody/invented/this")
        send_last_spans()

    with logged(JsonLines()) as lines:
        asyncio.run(served())
    spans = spans_of(collector)
    of_requests = sorted(span.name for span in spans if span.name not in ("inference", "queue", "tokenize"))
    assert of_requests == ["GET", "POST /embed", "POST /embed", "POST /v1/embeddings"]
    (taken,) = (span for span in spans if span.parent_span_id.hex() == SPAN)
    assert taken.trace_id.hex() == TRACE
    assert answers[0].headers["traceparent"] == f"00-{TRACE}-{taken.span_id.hex()}-01"
    parts = [span for span in spans if span.parent_span_id == taken.span_id]
    assert len(parts) == 3
    assert all(taken.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano for part in parts)
    said = [json.loads(line) for line in lines]
    assert (said[0]["trace_id"], said[0]["span_id"]) == (TRACE, taken.span_id.hex())
    assert said[1]["trace_id"] != TRACE


def test_traces_are_off_unless_an_endpoint_is_named(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    assert not tracing.check_traces(None)
    assert tracing.check_traces("http://localhost:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    assert tracing.check_traces(None)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.check_traces(None)


def test_a_protocol_that_we_do_not_speak_is_named(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(InputError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf or unset, got 'grpc'"):
        tracing.check_traces("http://localhost:4318")


def test_the_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    with pytest.raises(ExtraNotInstalledError):
        tracing.open_tracer(None)
    assert main(["serve", "no bundle"]) == 2
    assert "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces" in (said := capsys.readouterr().err)
    assert "m3-runtime[serve,otel]" in said
