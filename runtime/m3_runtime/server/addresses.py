"""Addresses as clients put them together, before anything looks at them: one spelling for each route.

Clients append their path to the address that they are given, with or without /v1 and with or without a slash, and do
not follow redirects. Amazon SageMaker and text-embeddings-inference have names of their own for some routes.
"""

import re

from starlette.types import Scope

_SAME_ROUTE = {
    "/embeddings": "/v1/embeddings",
    "/models": "/v1/models",
    "/ping": "/health",
    "/invocations": "/embed",
}
_AGAIN = re.compile(r"^(/v1)+(?=/v[12]/)")
_RERANKER = "/reranker/"
RERANKER_INFO = "/reranker/info"
"""The server as a reranker: at an address of its own, since some clients ask /info and use what it says alone."""


def with_usual_path(scope: Scope) -> Scope:
    """A request's scope with its path in the one spelling; a prefix that a proxy puts before all paths stays."""
    path, root = scope["path"], scope.get("root_path", "")
    prefix = root if path.startswith(f"{root}/") else ""
    return {**scope, "path": prefix + usual_path(path.removeprefix(prefix))}


def usual_path(path: str) -> str:
    """The path under which a route is known; any other path as it is.

    >>> [usual_path(path) for path in ("/v1/embeddings/", "//v1/v1/embeddings", "/embeddings", "/reranker/rerank")]
    ['/v1/embeddings', '/v1/embeddings', '/v1/embeddings', '/rerank']
    >>> usual_path("/"), usual_path("/reranker/info"), usual_path("/v1/models/BAAI/bge-m3")
    ('/', '/reranker/info', '/v1/models/BAAI/bge-m3')
    """
    path = _AGAIN.sub("", "/" + re.sub("/+", "/", path).strip("/"))
    if path.startswith(_RERANKER) and path != RERANKER_INFO:
        path = path.removeprefix("/reranker")
    return _SAME_ROUTE.get(path, f"/v1{path}" if path.startswith("/models/") else path)
