"""Ask a server with other people's clients, and print what they give.

Runs in the environment of pins.txt. Standard input: {"url": …, "model": …, "texts": […], "query": …, "documents": […],
"code": {name: code of docs/use/integrations.md that makes LangChain's `embeddings`}}.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from no_network import refuse_network, wanted

PACKAGES = (
    "langchain-huggingface", "langchain-openai", "huggingface_hub", "litellm", "cohere",
    "llama-index-embeddings-openai-like",
)  # fmt: skip
KEY = {"api_key": "none"}
BEST = 2

# else it asks GitHub for everybody's prices; it also brings tiktoken's words, which LangChain's default needs
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"


def main() -> None:
    request = json.load(sys.stdin)
    refuse_network()
    langchain = {name: langchain_vectors(code, request["texts"]) for name, code in request["code"].items()}
    found = {
        "ranks": {**cohere_ranks(request), **litellm_ranks(request)},
        "vectors": {**litellm_vectors(request), "llama-index": llama_index_vectors(request)},
        "langchain": langchain,
        "refusals": refusals(request),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "connections": wanted,
    }
    print(json.dumps(found))


def langchain_vectors(code: str, texts: list[str]) -> dict:
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


def llama_index_vectors(request: dict) -> list[list[float]]:
    return llama_index(request, request["model"]).get_text_embedding_batch(request["texts"])


def llama_index(request: dict, model: str) -> Any:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    return OpenAILikeEmbedding(model_name=model, api_base=f"{request['url']}/v1", max_retries=0, **KEY)


def litellm_vectors(request: dict) -> dict:
    """By its provider for OpenAI, at both spellings of the address, and by its provider for vLLM."""
    import litellm

    url, texts = request["url"], request["texts"]
    asked = {"openai": f"{url}/v1", "openai, bare": url, "hosted_vllm": f"{url}/v1"}
    found = {}
    for name, base in asked.items():
        model = f"{name.partition(',')[0]}/{request['model']}"
        answer = litellm.embedding(model=model, input=texts, api_base=base, encoding_format="float", **KEY)
        found[f"litellm {name}"] = [item["embedding"] for item in answer.data]
    return found


def litellm_ranks(request: dict) -> dict:
    import litellm

    url, found = request["url"], {}
    bases = {"hosted_vllm": url, "cohere": url, "jina_ai": f"{url}/v1/rerank", "huggingface": url}
    for provider, base in bases.items():
        answer = litellm.rerank(
            model=f"{provider}/bge-m3",
            query=request["query"],
            documents=request["documents"],
            top_n=BEST,
            return_documents=True,
            api_base=base,
            **KEY,
        )
        found[f"litellm {provider}"] = [
            [result["index"], result["relevance_score"], result["document"]["text"]] for result in answer.results
        ]
    return found


def cohere_ranks(request: dict) -> dict:
    """By both versions of its API; version 2 has no documents in its answers."""
    import cohere

    wishes = {"model": "bge-m3", "query": request["query"], "documents": request["documents"], "top_n": BEST}
    first = cohere.Client(base_url=request["url"], **KEY).rerank(**wishes, return_documents=True)
    second = cohere.ClientV2(base_url=request["url"], **KEY).rerank(**wishes)
    texts = request["documents"]
    return {
        "cohere v1": [[found.index, found.relevance_score, found.document.text] for found in first.results],
        "cohere v2": [[found.index, found.relevance_score, texts[found.index]] for found in second.results],
    }


def refusals(request: dict) -> dict:
    """What clients raise where we refuse: the status and the words that their users see."""
    import cohere
    import litellm
    from langchain_openai import OpenAIEmbeddings

    url, texts = request["url"], request["texts"]
    v1 = {"base_url": f"{url}/v1", **KEY}
    return {
        "langchain by default": refused(
            lambda: OpenAIEmbeddings(model=request["model"], max_retries=0, **v1).embed_documents(texts)
        ),
        "llama-index": refused(lambda: llama_index(request, "gpt").get_text_embedding("a")),
        "litellm": refused(
            lambda: litellm.embedding(model="openai/gpt", input=texts, api_base=v1["base_url"], max_retries=0, **KEY)
        ),
        "cohere": refused(lambda: cohere.ClientV2(base_url=url, **KEY).rerank(model="bge-m3", query="a", documents=[])),
    }


def refused(ask: Callable[[], object]) -> list:
    try:
        answer = ask()
    except Exception as error:
        return [getattr(error, "status_code", None), str(error)]
    return [200, repr(answer)[:100]]


if __name__ == "__main__":
    main()
