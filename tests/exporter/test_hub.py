"""A hub id as SOURCE: a real HTTP server stands for the hub, and the real huggingface_hub client talks to it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from export_command import FEW

from commands import run_main
from m3_export.checkpoint.folder import CHECKPOINT_PATTERNS
from m3_export.errors import HubError
from m3_runtime import M3Encoder
from m3_runtime.cli import main

REPO = "someone/bge-m3-tuned"
COMMIT = hashlib.sha1(b"the commit").hexdigest()
TAG = "v1.0"


class Hub(ThreadingHTTPServer):
    """The few endpoints that snapshot_download uses, serving one folder as one commit."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requested: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> list[dict[str, Any]]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [
            {"type": "file", "path": p.relative_to(self.folder).as_posix(), "size": p.stat().st_size, "oid": etag(p)}
            for p in paths
        ]


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.requested.append(path)
        if (
            path in (f"/api/models/{REPO}/revision/{name}" for name in ("main", TAG, COMMIT))
            or path == f"/api/models/{REPO}"
        ):
            siblings = [{"rfilename": entry["path"]} for entry in self.server.files()]
            return self.send_json({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}, body=body)
        if path.startswith(f"/api/models/{REPO}/tree/"):
            return self.send_json(self.server.files(), body=body)
        file = self.server.folder / path.removeprefix(f"/{REPO}/resolve/").partition("/")[2]
        if path.startswith(f"/{REPO}/resolve/") and file.is_file():
            return self.send_file(file, body=body)
        known = path.startswith((f"/{REPO}/", f"/api/models/{REPO}"))
        code = ("RevisionNotFound" if "/revision/" in path else "EntryNotFound") if known else "RepoNotFound"
        return self.send_json({"error": "not found"}, body=body, status=404, headers={"X-Error-Code": code})

    def send_json(self, value: object, *, body: bool, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def send_file(self, file: Path, *, body: bool) -> None:
        data = file.read_bytes()
        self.send_response(200)
        for name, text in {
            "ETag": f'"{etag(file)}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(data)),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are kept in `requested`; a test's output is no place for them."""


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


@pytest.fixture
def repository(tiny_random_checkpoint: Path, tmp_path: Path) -> Path:
    """tiny-random as a hub repository: with files beside it that an export has no use for."""
    folder = Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "repository"))
    (folder / "README.md").write_text("# a model card")
    (folder / "imgs").mkdir()
    (folder / "imgs/long.jpg").write_bytes(b"\xff\xd8")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").write_bytes(b"another's graph")
    (folder / "modeling_own.py").write_text("raise SystemExit('code of the checkpoint has run')")
    return folder


def environment(tmp_path: Path, endpoint: str, **more: str) -> dict[str, str]:
    """This process's environment with the hub and its cache elsewhere, and nothing of the user's own settings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    return {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub-cache"), "OMP_NUM_THREADS": "1", **more}


def export(*words: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "m3_export", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)


# Each answer is a fork's: the hub's client, which is imported there, reads its settings once; torch takes a second.
FORKS = """
import json, os, sys
from pathlib import Path
from m3_export.checkpoint.source import resolve
from m3_export.errors import ExportError

def answer(source, revision):
    try:
        found = resolve(source, Path("unused"), revision=revision, progress=lambda _: None)
    except ExportError as error:
        return f"{type(error).__name__} {error}"
    return f"found {found.name} {found.revision} " + ",".join(sorted(path.name for path in found.folder.iterdir()))

for line in sys.stdin:
    env, sources = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.clear()
        os.environ.update(env)
        print(json.dumps([answer(*source) for source in sources]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
Resolved = Callable[..., list[str]]


@pytest.fixture(scope="module")
def resolved() -> Iterator[Resolved]:
    """What `resolve` gives in an environment for each (SOURCE, revision)."""
    words, pipe = [sys.executable, "-c", FORKS], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:

        def answers(env: dict[str, str], *sources: tuple[str, str | None]) -> list[str]:
            process.stdin.write(json.dumps([env, sources]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield answers


def test_a_hub_id_is_exported_and_its_commit_pinned(resolved: Resolved, repository: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    with serving(repository) as hub:
        env = environment(tmp_path, hub.url)
        done = export(REPO, out, "--variants", "onnx-fp32", *FEW, "--quiet", "--revision", TAG, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", "quiet means the hub client's bars too"
        assert f"/api/models/{REPO}/revision/{TAG}" in hub.requested
    with M3Encoder.open(out, verify="full") as encoder:
        source = encoder.bundle.manifest.source
        assert (source.name, source.revision) == (REPO, COMMIT)
        assert {entry.path for entry in source.files} >= {"config.json", "model.safetensors", "sparse_linear.pt"}
        assert encoder.encode("What is BGE M3?", return_sparse=True)["dense_vecs"].shape == (64,)
    # the second time without a network: what is in the cache is enough
    (line,) = resolved(environment(tmp_path, hub.url, HF_HUB_OFFLINE="1"), (REPO, TAG))
    assert line.startswith(f"found {REPO} {COMMIT} ")


def test_a_bundle_opens_where_the_client_put_it(tiny_bundle: Path, tmp_path: Path):
    """`snapshot_download` without local_dir: a folder of links into the cache."""
    script = f"from huggingface_hub import snapshot_download; print(snapshot_download({REPO!r}))"
    with serving(tiny_bundle) as hub:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment(tmp_path, hub.url, HF_HUB_DISABLE_PROGRESS_BARS="1"),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    snapshot = Path(done.stdout.strip())
    assert snapshot.name == COMMIT and (snapshot / "onnx/model.onnx_data").is_symlink()
    for variant in ("onnx-fp32", "onnx-int8", "openvino-int8"):
        with (
            M3Encoder.open(snapshot, variant=variant, verify="full", threads=1) as cached,
            M3Encoder.open(tiny_bundle, variant=variant, threads=1) as plain,
        ):
            assert (cached.encode("What is BGE M3?").dense_vecs == plain.encode("What is BGE M3?").dense_vecs).all()
    assert run_main(main, "info", snapshot, "--verify", "full").returncode == 0


def test_only_the_files_of_a_checkpoint_are_fetched(resolved: Resolved, repository: Path, tmp_path: Path):
    with serving(repository) as hub:
        (line,) = resolved(environment(tmp_path, hub.url), (REPO, None))
    found, name, commit, files = line.split()
    assert (found, name, commit) == ("found", REPO, COMMIT)
    wanted = {
        "config.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    }  # fmt: skip
    assert set(files.split(",")) == wanted
    fetched = {path.partition(f"/resolve/{COMMIT}/")[2] for path in hub.requested if "/resolve/" in path}
    assert fetched == wanted
    assert not any(pattern.endswith((".py", ".onnx", "*")) for pattern in CHECKPOINT_PATTERNS)


def test_offline_with_an_empty_cache_fails_clearly(resolved: Resolved, tmp_path: Path):
    (line,) = resolved(environment(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1"), (REPO, None))
    assert line.startswith(f"HubError there is no folder {REPO!r}, and it could not be fetched from the hub: ")
    assert "HF_HUB_OFFLINE" in line
    assert "give its folder" in line and "m3-export mini-m3 OUT" in line
    assert not HubError.is_of_input  # but a failure: exit code 1


def test_what_the_hub_does_not_have_is_named(resolved: Resolved, repository: Path, tmp_path: Path):
    sources = ("someone/unknown", None), (REPO, "v9.9"), ("someone/bad--name", None)
    with serving(repository) as hub:
        lines = resolved(environment(tmp_path, hub.url), *sources)
    expected = ("404", "Repository Not Found"), ("404", "Revision Not Found", "v9.9"), ("bad--name",)
    for (source, _), line, words in zip(sources, lines, expected, strict=True):
        assert line.startswith(f"SourceError there is no folder {source!r}, and it could not be fetched from the hub: ")
        assert all(word in line for word in words), line
        assert "give its folder" in line


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "no-url"])
def test_an_endpoint_that_does_not_answer_is_named(resolved: Resolved, tmp_path: Path, endpoint: str):
    (line,) = resolved(environment(tmp_path, endpoint), (REPO, None))
    assert line.startswith(f"HubError there is no folder {REPO!r}, and it could not be fetched from the hub: ")
    assert "give its folder" in line


def test_a_repository_without_a_model_is_refused(resolved: Resolved, tmp_path: Path):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository/README.md").write_text("# nothing here")
    with serving(tmp_path / "repository") as hub:
        (line,) = resolved(environment(tmp_path, hub.url), (REPO, None))
    assert line.startswith(f"SourceError hub repository {REPO!r} holds no config.json")
