"""Open bundles with sentence-transformers, Optimum and others by the code of docs/use and print what they give.

Runs in the environment of pins.txt. Standard input: {"sentence-transformers": [code, code, code], "optimum": [code],
"genai": [code], "fastembed": [code], "texts": [...], "prompts": {...}, "calls": [[method, arguments], ...]}.
In the working folder, `tiny` and `mini` each hold a bundle by the name that the code uses.
"""

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from no_network import refuse_network, wanted

PACKAGES = ("sentence-transformers", "optimum-onnx", "optimum-intel", "openvino-genai", "transformers", "fastembed")


def main() -> None:
    request = json.load(sys.stdin)
    refuse_network()
    there = Path.cwd()
    found = {}
    for name in ("tiny", "mini"):
        os.chdir(there / name)
        found[name] = sentence_transformers(request, with_int8=name == "tiny")
    os.chdir(there / "tiny")
    found["optimum"] = optimum(request)
    found["calls"] = calls(request)
    found["fastembed"] = fastembed(request)
    found["genai"] = {}
    for name in ("tiny", "mini"):
        os.chdir(there / name)
        found["genai"][name] = genai(request)
    found["versions"] = {name: metadata.version(name) for name in PACKAGES}
    found["connections"] = wanted
    print(json.dumps(found))


def sentence_transformers(request: dict, with_int8: bool) -> dict:
    fp32, int8, openvino = request["sentence-transformers"]
    page: dict = {}
    exec(fp32, page)
    found = {
        "page": listed(page["dense_vecs"]),
        "fp32": listed(page["model"].encode(request["texts"])),
        "max_seq_length": page["model"].max_seq_length,
    }
    exec(openvino, page)
    found["openvino"] = listed(page["openvino_model"].encode(request["texts"], batch_size=1))
    if with_int8:
        exec(int8, page)
        found["int8"] = listed(page["int8_model"].encode(request["texts"], batch_size=1))
    return found


def calls(request: dict) -> list:
    """What a model with prompts gives for each call, and how it compares the vectors of the first one."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("bge-m3-cpu", backend="onnx", local_files_only=True, prompts=request["prompts"])
    found = [listed(getattr(model, method)(request["texts"], **more)) for method, more in request["calls"]]
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        model.similarity_fn_name = name
        found += [
            listed(model.similarity(found[0], found[0][:2])),
            listed(model.similarity_pairwise(found[0], found[0])),
        ]
    return found


def fastembed(request: dict) -> dict:
    (code,) = request["fastembed"]
    page: dict = {}
    exec(code, page)
    vectors = page["model"].embed(request["texts"], batch_size=1)  # alone: others would be padded to the longest
    return {"page": listed(page["dense_vecs"]), "texts": listed(list(vectors))}


def genai(request: dict) -> dict:
    (code,) = request["genai"]
    page: dict = {}
    exec(code, page)
    return {"page": page["dense_vecs"], "texts": [page["pipeline"].embed_query(text) for text in request["texts"]]}


def optimum(request: dict) -> dict:
    (code,) = request["optimum"]
    page: dict = {}
    exec(code, page)
    tokenizer, model = page["tokenizer"], page["model"]
    batch = tokenizer(request["texts"], padding=True, truncation=True, return_tensors="np")
    rows = feature_extraction("last_hidden_state.onnx")
    return {
        "page": {name: listed(array) for name, array in page["found"].items()},
        "ids": tokenizer(request["texts"], truncation=True)["input_ids"],
        "dense_vecs": listed(model(**batch)["dense_vecs"]),
        "last_hidden_state": list(rows(**batch).last_hidden_state.shape),
    }


def feature_extraction(file_name: str):
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    return ORTModelForFeatureExtraction.from_pretrained("bge-m3-cpu", subfolder="onnx", file_name=file_name)


def listed(array: np.ndarray) -> list:
    return np.asarray(array).tolist()


if __name__ == "__main__":
    main()
