"""A server as users start it: a process of its own, on a free port of this machine."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from patience import PATIENCE_S, wait_until


@dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen[str]
    url: str
    log_file: Path
    client: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx2.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        return self.client.post(path, json=body, headers=headers)

    def log(self) -> list[dict[str, Any]]:
        lines = self.log_file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def metric(self, name: str) -> float:
        """The sum over all labels of one count."""
        lines = self.client.get("/metrics").text.splitlines()
        values = [float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert values, name
        return sum(values)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def resident_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)


@contextmanager
def running(bundle: Path, folder: Path, *words: str) -> Iterator[Running]:
    """Run m3-runtime serve until the block ends."""
    log_file = folder / "server.log"
    command = [sys.executable, "-m", "m3_runtime", "serve", str(bundle), "--port", "0", "--threads", "1", *words]
    with log_file.open("w") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
    server = None
    try:
        server = Running(process, _url(process, log_file), log_file)
        _wait_until_ready(server)
        yield server
    finally:
        if server is not None:
            server.client.close()
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def events(server: Running, name: str, number: int) -> list[dict]:
    """The log's lines of one event, once there are so many."""

    def found() -> list[dict]:
        return [line for line in server.log() if line["event"] == name]

    wait_until(lambda: len(found()) >= number, server.log_file.read_text)
    return found()


def _url(process: subprocess.Popen[str], log_file: Path) -> str:
    urls: list[str] = []

    def serves() -> bool:
        assert process.poll() is None, log_file.read_text()
        for line in log_file.read_text().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n") and (found := json.loads(line)).get("event") == "serving":
                urls.append(str(found["url"]))
        return bool(urls)

    wait_until(serves, log_file.read_text)
    return urls[0]


def _wait_until_ready(server: Running) -> None:
    def is_ready() -> bool:
        try:
            return server.client.get("/ready").status_code == 200
        except httpx2.TransportError:
            return False

    wait_until(is_ready, lambda: "the server is not ready")
