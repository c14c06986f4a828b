"""Ask a server with LangChain's clients by the code of docs/use/integrations.md, and print what they give.

Runs in the environment of pins.txt. Standard input: {"code": {name: code}, "texts": [...]}.
"""

import asyncio
import json
import sys
from importlib import metadata

from no_network import refuse_network, wanted

PACKAGES = ("langchain-huggingface", "langchain-openai", "huggingface_hub")


def main() -> None:
    request = json.load(sys.stdin)
    refuse_network()
    found = {name: vectors(code, request["texts"]) for name, code in request["code"].items()}
    versions = {name: metadata.version(name) for name in PACKAGES}
    print(json.dumps({**found, "versions": versions, "connections": wanted}))


def vectors(code: str, texts: list[str]) -> dict:
    page: dict = {}
    exec(code, page)
    embeddings = page["embeddings"]

    async def asked() -> list[list[float]]:
        return [*await embeddings.aembed_documents(texts), await embeddings.aembed_query(texts[0])]

    return {
        "documents": embeddings.embed_documents(texts),
        "query": embeddings.embed_query(texts[0]),
        "asynchronous": asyncio.run(asked()),
    }


if __name__ == "__main__":
    main()
