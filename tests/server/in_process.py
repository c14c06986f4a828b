"""The server's app in this process, and bundles that say something else about themselves."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from m3_runtime.server.app import create_app
from m3_runtime.server.service import Service
from m3_runtime.server.settings import ServedBundle, ServerSettings


@contextmanager
def served(bundle: Path, **settings: Any) -> Iterator[TestClient]:
    """A client of the app that serves a bundle, with these settings."""
    given = ServerSettings(ServedBundle(bundle, threads=1, variant="onnx-fp32"), **settings)
    service = Service(given.bundle.open(), given, given.open_reranker())
    service.warm_up()
    with TestClient(create_app(service)) as client:
        yield client


def changed_bundle(
    bundle: Path,
    folder: Path,
    files: Mapping[str, object] | None = None,
    change: Callable[[dict[str, Any]], object] = lambda _: None,
) -> Path:
    """A copy of a bundle with these JSON files in it, and another manifest."""
    shutil.copytree(bundle, folder, copy_function=shutil.os.link)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name, content in (files or {}).items():
        data = json.dumps(content).encode()
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        entry = {"path": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"] = [each for each in manifest["files"] if each["path"] != name] + [entry]
    change(manifest)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
