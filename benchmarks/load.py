"""How a running server does under load, and beside the encoder called directly.

    python benchmarks/load.py http://localhost:8080 --clients 8 --texts 16 --seconds 20
    python benchmarks/load.py http://localhost:8080 --clients 1 --texts 1 --words 6 --bundle out/mini-m3 --threads 2

Each client sends its next request when it has the answer to the last (a closed loop), every request with other texts.
With --bundle the encoder is measured in this process, on the same texts, before and after the load, so that the server
is idle meanwhile; give it the server's --variant and --threads. Run both on a machine that does nothing else.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from m3_runtime import M3Encoder

WORDS = (
    "river", "Brücke", "мост", "桥", "stone", "agua", "vent", "clear", "number", "seven", "garden", "лето", "house",
    "paper", "signal", "winter", "orden", "and", "the", "of", "without", "machine", "language", "query", "answer",
)  # fmt: skip


@dataclass
class Tally:
    """What all clients have seen; times of answers with status 200 only."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    texts: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Direct:
    """The encoder in this process: tokens per second over many requests' texts, and the time of one request."""

    tokens_per_s: float
    p50_s: float


def made_texts(seed: int, count: int, words: int) -> list[str]:
    """So many texts, of half to one and a half times so many words."""
    picked = random.Random(seed)  # noqa: S311 - the same texts each time
    return [" ".join(picked.choices(WORDS, k=max(1, round(words * picked.uniform(0.5, 1.5))))) for _ in range(count)]


def requests_of(client: int, asked: argparse.Namespace) -> Iterator[list[str]]:
    """One client's requests, without end."""
    turn = 0
    while True:
        yield made_texts(1_000_000 * client + turn, asked.texts, asked.words)
        turn += 1


def run_client(client: int, asked: argparse.Namespace, until_s: float, tally: Tally, lock: threading.Lock) -> None:
    """Ask until the time is up."""
    connection = connected(asked.url)
    for texts in requests_of(client, asked):
        if time.perf_counter() >= until_s:
            break
        body = json.dumps({"model": asked.model, "input": texts, "encoding_format": "base64"})
        start_s = time.perf_counter()
        answer = sent(connection, asked, "POST", "/v1/embeddings", body)
        content = answer.read()
        took_s = time.perf_counter() - start_s
        with lock:
            tally.statuses[answer.status] += 1
            if answer.status == http.client.OK:
                tally.latencies_s.append(took_s)
                tally.texts += len(texts)
                tally.tokens += json.loads(content)["usage"]["total_tokens"]
        if answer.status == http.client.TOO_MANY_REQUESTS:
            time.sleep(min(1.0, float(answer.headers["retry-after"])))
    connection.close()


def connected(url: str) -> http.client.HTTPConnection:
    """A connection to the server."""
    parts = urlsplit(url)
    assert parts.scheme == "http" and parts.hostname, f"expected http://HOST:PORT, got {url!r}"
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=120)


def sent(
    connection: http.client.HTTPConnection, asked: argparse.Namespace, method: str, path: str, body: str | None = None
) -> http.client.HTTPResponse:
    """Send a request."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {asked.key}"} if asked.key else {})
    connection.request(method, path, body, headers)
    return connection.getresponse()


def loaded(asked: argparse.Namespace, seconds: float) -> tuple[Tally, float]:
    """Put the server under load; what was seen, and the seconds until the last answer."""
    tally, lock = Tally(), threading.Lock()
    start_s = time.perf_counter()
    clients = [
        threading.Thread(target=run_client, args=(client, asked, start_s + seconds, tally, lock))
        for client in range(asked.clients)
    ]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return tally, time.perf_counter() - start_s


def direct(encoder: M3Encoder, asked: argparse.Namespace, seconds: float) -> Direct:
    """The encoder's own throughput over what all clients have under way at a time, and its time for single requests."""
    turns = [requests_of(client, asked) for client in range(asked.clients)]
    tokens, used_s = 0, 0.0
    while used_s < seconds / 2:
        texts = [text for turn in turns for text in next(turn)]
        start_s = time.perf_counter()
        tokens += int(encoder.encode(texts, max_length=encoder.max_tokens).token_counts.sum())
        used_s += time.perf_counter() - start_s
    took_s: list[float] = []
    while sum(took_s) < seconds / 2:
        texts = next(turns[0])
        start_s = time.perf_counter()
        encoder.encode(texts, max_length=encoder.max_tokens)
        took_s.append(time.perf_counter() - start_s)
    return Direct(tokens / used_s, statistics.median(took_s))


def beside(asked: argparse.Namespace) -> tuple[Tally, float, list[Direct]]:
    """The load, with the encoder before and after it where a bundle is given."""
    loaded(asked, min(2.0, asked.seconds))  # warms the server up
    if asked.bundle is None:
        return *loaded(asked, asked.seconds), []
    with M3Encoder.open(asked.bundle, variant=asked.variant, threads=asked.threads) as encoder:
        direct(encoder, asked, min(2.0, asked.seconds))
        before = direct(encoder, asked, asked.seconds / 2)
        tally, took_s = loaded(asked, asked.seconds)
        return tally, took_s, [before, direct(encoder, asked, asked.seconds / 2)]


def report(asked: argparse.Namespace, tally: Tally, took_s: float, alone: Sequence[Direct]) -> None:
    """Print what was measured."""
    statuses = ", ".join(f"{count} × {status}" for status, count in sorted(tally.statuses.items()))
    print(f"{asked.clients} clients, {asked.texts} texts of about {asked.words} words a request: {statuses}")
    if not tally.latencies_s:
        return
    places = sorted(tally.latencies_s)
    p50, p90, p99 = (1000 * places[min(len(places) - 1, int(share * len(places)))] for share in (0.5, 0.9, 0.99))
    rate = tally.tokens / took_s
    print(f"{len(places) / took_s:.1f} requests/s, {tally.texts / took_s:.1f} texts/s, {rate:.0f} tokens/s")
    print(f"latency p50 {p50:.1f} ms, p90 {p90:.1f} ms, p99 {p99:.1f} ms")
    for when, found in zip(("before", "after"), alone, strict=False):
        print(
            f"encoder {when}: {found.tokens_per_s:.0f} tokens/s, p50 {1000 * found.p50_s:.1f} ms; "
            f"server: {rate / found.tokens_per_s:.2f} of it, p50 {p50 - 1000 * found.p50_s:+.1f} ms"
        )


def main() -> None:
    """Run the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url", metavar="URL", help="http://HOST:PORT of a server")
    arguments.add_argument("--clients", type=int, default=8, help="default: %(default)s")
    arguments.add_argument("--texts", type=int, default=8, help="texts of a request (default: %(default)s)")
    arguments.add_argument("--words", type=int, default=40, help="words of a text, about (default: %(default)s)")
    arguments.add_argument("--seconds", type=float, default=10.0, help="default: %(default)s")
    arguments.add_argument("--key", help="an API key")
    arguments.add_argument("--bundle", help="the server's bundle, to measure the encoder beside it")
    arguments.add_argument("--variant", default="auto", help="of the encoder (default: auto)")
    arguments.add_argument("--threads", type=int, help="of the encoder (default: the cores this process may use)")
    asked = arguments.parse_args()
    connection = connected(asked.url)
    asked.model = json.loads(sent(connection, asked, "GET", "/v1/models").read())["data"][0]["id"]
    connection.close()
    report(asked, *beside(asked))


if __name__ == "__main__":
    main()
