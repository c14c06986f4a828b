"""A server as users start it: a process of its own, on a free port of this machine."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

START_S = 60


@dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen[str]
    url: str
    log_file: Path
    client: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx2.Client(base_url=self.url, timeout=60, trust_env=False)

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
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


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
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def events(server: Running, name: str, number: int) -> list[dict]:
    """The log's lines of one event, once there are so many."""
    end_s = time.monotonic() + 90
    while len(found := [line for line in server.log() if line["event"] == name]) < number:
        assert time.monotonic() < end_s, server.log_file.read_text()
        time.sleep(0.1)
    return found


def _url(process: subprocess.Popen[str], log_file: Path) -> str:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        assert process.poll() is None, log_file.read_text()
        for line in log_file.read_text().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n") and (found := json.loads(line)).get("event") == "serving":
                return str(found["url"])
        time.sleep(0.05)
    raise AssertionError(f"the server did not start within {START_S} s: {log_file.read_text()}")


def _wait_until_ready(server: Running) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        try:
            if server.client.get("/ready").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server is not ready")
