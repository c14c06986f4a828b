"""Addresses as clients put them together, before anything looks at them: one canonical path for each route.

Clients append their path to the address that they are given, with or without /v1 and with or without a slash, and do
not follow redirects. Amazon SageMaker and text-embeddings-inference have names of their own for some routes. A proxy
may show the server under a prefix.
"""

import re
from collections.abc import Iterable

from starlette.types import Scope

from m3_runtime.errors import InputError

OPERATION_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""What machines ask every few seconds: neither logged nor traced."""

_ALIASES = {
    "/embeddings": "/v1/embeddings",
    "/models": "/v1/models",
    "/ping": "/health",
    "/invocations": "/embed",
}
_REPEATED_V1 = re.compile(r"^(/v1)+(?=/v[12]/)")
_RERANKER = "/reranker/"
RERANKER_INFO = "/reranker/info"
"""The server as a reranker: at an address of its own, since some clients ask /info and use what it says alone."""


class Addresses:
    """The paths that a server answers, and the prefix under which a proxy shows them."""

    def __init__(self, paths: Iterable[str], root_path: str = "") -> None:
        """Know a server's canonical paths and the prefix, "/m3" for instance.

        Raises:
            InputError: with this prefix a path would mean two things.
        """
        self.paths = frozenset(paths)
        self._prefix = root_path
        if root_path and self._is_ambiguous():
            raise InputError(f"the root path {root_path!r} is a path of the server's own; choose another --root-path")

    def canonical(self, scope: Scope) -> Scope:
        """A request's scope with the canonical path, whether or not the proxy has taken its prefix off.

        The prefix stands where the framework looks for it when it makes links.
        """
        path, prefix = canonical_path(scope["path"]), self._prefix
        if prefix and path not in self.paths and f"{path}/".startswith(f"{prefix}/"):
            path = canonical_path(path.removeprefix(prefix))
        # the framework would take off a prefix that is a part of our own path
        return {**scope, "path": path, "root_path": "" if path.startswith(f"{prefix}/") else prefix}

    def _is_ambiguous(self) -> bool:
        prefix, below = self._prefix, f"{self._prefix}/x"
        has_meaning = prefix in self.paths or (canonical_path(prefix), canonical_path(below)) != (prefix, below)
        within = (path.removeprefix(prefix) for path in self.paths if path.startswith(f"{prefix}/"))
        return has_meaning or any(canonical_path(path) in self.paths for path in within)


def canonical_path(path: str) -> str:
    """The path under which a route is known; any other path as it is.

    >>> [canonical_path(path) for path in ("/v1/embeddings/", "//v1/v1/embeddings", "/embeddings", "/reranker/rerank")]
    ['/v1/embeddings', '/v1/embeddings', '/v1/embeddings', '/rerank']
    >>> canonical_path("/"), canonical_path("/reranker/info"), canonical_path("/v1/models/BAAI/bge-m3")
    ('/', '/reranker/info', '/v1/models/BAAI/bge-m3')
    """
    path = _REPEATED_V1.sub("", "/" + re.sub("/+", "/", path).strip("/"))
    if path.startswith(_RERANKER) and path != RERANKER_INFO:
        path = path.removeprefix("/reranker")
    return _ALIASES.get(path, f"/v1{path}" if path.startswith("/models/") else path)
