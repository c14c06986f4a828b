"""Record what FlagEmbedding 1.4.2 itself gives for the checkpoints that tests can write: the golden values.

Nothing of this project runs here. A person runs it, once per change of a checkpoint's weights, in an environment
that has the reference:

    m3-export mini-m3 CHECKPOINTS/mini-m3 --checkpoint-only
    m3-export tiny-random CHECKPOINTS/tiny-random --checkpoint-only
    python3.11 -m venv REFERENCE
    REFERENCE/bin/pip install torch==2.13.0
    REFERENCE/bin/pip install FlagEmbedding==1.4.2
    REFERENCE/bin/python tests/golden/make_golden.py mini-m3 CHECKPOINTS/mini-m3
    REFERENCE/bin/python tests/golden/make_golden.py tiny-random CHECKPOINTS/tiny-random

Each run writes MODEL.npz (arrays, float32) and MODEL.json (everything else) beside this file. Per encoding the
arrays are NAME.dense (S, H), NAME.weights (the values of all texts' lexical weights, one after the other; their keys
are in the JSON) and NAME.colbert (the rows of all texts, one after the other; the JSON has their numbers). "instructed"
and "leading" (`truncate_dim`) have the first FEW texts only.
"""

import argparse
import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
from FlagEmbedding import BGEM3FlagModel
from safetensors import safe_open

REFERENCE = "1.4.2"
# Pooling and ColBERT width are in no checkpoint: FlagEmbedding has to be told.
ARGUMENTS = {
    "mini-m3": {"pooling_method": "mean", "colbert_dim": 128},
    "tiny-random": {"pooling_method": "cls", "colbert_dim": 24},
}
FILES = ("model.safetensors", "sparse_linear.pt", "colbert_linear.pt", "tokenizer.json")
PACKAGES = ("FlagEmbedding", "torch", "transformers", "tokenizers", "numpy")

LONG = (
    "A lighthouse keeper writes down the weather four times a day: wind, cloud, pressure and the height of the waves. "
    "For a hundred years nobody read these notebooks. Then a student of climate photographed 41,306 pages, and a "
    "program learnt to read the handwriting of twelve keepers, three of whom spelled 'barometer' in their own way. "
    "The figures show that storms arrive about nine days earlier than in 1890 – though the summers of 1911 and 1976 "
    "stand apart. What began as duty, says the student, became the longest unbroken diary of one small rock."
)
TEXTS = (
    "What is BGE M3?",
    "Defination of BM25",
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing in "
    "each document",
    "",
    "   ",
    "黄昏时分，渔船一只接一只地回到港口；夜の港は静かで、灯台だけが光っている。",
    "ตลาดน้ำเปิดตั้งแต่เช้าจนถึงบ่ายสามโมง",
    "هل وصل القطار المتأخر من المدينة القديمة؟",
    "क्या बारिश के बाद पहाड़ की सड़क खुल गई है?",
    "launch day 🚀🚀 👩‍🔬 went well 👍🏽!",
    "word word Word, words; modelmodel model remodel: word in the word on the model",
    "the token <unk> and <mask> before </s> and after<mask>it",
    "rare signs: 𓀀𓂀 𠀀𡈽 ꙮ \ue000 – unknown to most",
    LONG,
    "  two  blanks before,\ttab and\nline break, blank after ",
)
# Query 6 has tokens that resemble nothing in texts 4 and 0: best similarities below 0, which padding raises to 0.
PAIRS = ((0, 2), (0, 3), (1, 2), (1, 3), (6, 14), (6, 4), (6, 0), (12, 13), (11, 7), (9, 4))
FEW = 4
INSTRUCTION = {"instruction": "Find the passage for", "instruction_format": "{}:\\n{}"}
TRUNCATE_DIM = 16
# Far longer than any limit, with and without blanks to cut at: only the ids are recorded. (text, times, max_length)
ENDLESS = ((14, 40, 512), (14, 40, 10), (6, 500, 512))


def main() -> None:
    parser = argparse.ArgumentParser(description="Record golden values of FlagEmbedding 1.4.2.")
    parser.add_argument("model", choices=sorted(ARGUMENTS))
    parser.add_argument("checkpoint", type=Path, help="folder that m3-export MODEL FOLDER --checkpoint-only wrote")
    args = parser.parse_args()
    if metadata.version("FlagEmbedding") != REFERENCE:
        parser.error(f"FlagEmbedding {metadata.version('FlagEmbedding')} is installed; the reference is {REFERENCE}")
    facts, arrays = record(args.model, args.checkpoint)
    target = Path(__file__).parent / args.model.replace("-", "_")
    np.savez_compressed(target.with_suffix(".npz"), allow_pickle=False, **arrays)
    target.with_suffix(".json").write_text(as_text(facts), encoding="utf-8")


def record(name: str, checkpoint: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Everything: the facts for the JSON and the arrays."""
    arguments = {"use_fp16": False, "devices": "cpu", **ARGUMENTS[name]}
    model = BGEM3FlagModel(str(checkpoint), **arguments)
    arrays: dict[str, np.ndarray] = {}
    encodings = {
        "whole": encoding(model, "whole", TEXTS, arrays, max_length=512),
        "cut": encoding(model, "cut", TEXTS, arrays, max_length=10),
        "instructed": encoding(model, "instructed", TEXTS[:FEW], arrays, max_length=512, **INSTRUCTION),
    }
    model.truncate_dim = TRUNCATE_DIM
    leading = encoding(model, "leading", TEXTS[:FEW], arrays, max_length=512)
    encodings["leading"] = leading | {"truncate_dim": TRUNCATE_DIM}
    model.truncate_dim = None
    facts = {
        "model": name,
        "made_with": {package: metadata.version(package) for package in PACKAGES}
        | {"python": platform.python_version()},
        "arguments": arguments,
        "checkpoint": {
            "weights_sha256": weights_sha256(model, checkpoint),
            "files": {file: hashlib.sha256((checkpoint / file).read_bytes()).hexdigest() for file in FILES},
        },
        "texts": TEXTS,
        "encodings": encodings,
        "endless": [endless(model, *case) for case in ENDLESS],
        "one_text": one_text(model),
        "words": words(model),
        "pairs": PAIRS,
        "pair_scores": pair_scores(model),
        "one_pair": model.compute_score([TEXTS[i] for i in PAIRS[0]], weights_for_different_modes=[0.4, 0.2, 0.4]),
    }
    return facts, arrays | score_matrices(model)


def encode(model: BGEM3FlagModel, texts: str | tuple[str, ...], **options: object) -> dict:
    """`encode` with all three heads."""
    sentences = texts if isinstance(texts, str) else list(texts)
    return model.encode(sentences, return_dense=True, return_sparse=True, return_colbert_vecs=True, **options)


def encoding(
    model: BGEM3FlagModel, name: str, texts: tuple[str, ...], arrays: dict[str, np.ndarray], **options: object
) -> dict:
    """Encode the texts in one padded batch; the arrays go to `arrays`, the rest is returned."""
    found = encode(model, texts, **options)
    values = [value for weights in found["lexical_weights"] for value in weights.values()]
    arrays[f"{name}.dense"] = found["dense_vecs"]
    arrays[f"{name}.weights"] = np.array(values, np.float32)
    arrays[f"{name}.colbert"] = np.concatenate(found["colbert_vecs"])
    return options | {
        "ids": ids(model, texts, **options),
        "keys": [list(weights) for weights in found["lexical_weights"]],
        "colbert_rows": [len(rows) for rows in found["colbert_vecs"]],
        "dtypes": [str(arrays[f"{name}.{part}"].dtype) for part in ("dense", "colbert")],
    }


def ids(
    model: BGEM3FlagModel,
    texts: tuple[str, ...],
    max_length: int,
    instruction: str = "",
    instruction_format: str = "{}{}",
) -> list[list[int]]:
    """The ids that `encode` feeds to the model, text by text."""
    instructed = [model.get_detailed_instruct(instruction_format, instruction, text) for text in texts]
    return model.tokenizer(instructed, truncation=True, max_length=max_length)["input_ids"]


def endless(model: BGEM3FlagModel, text: int, times: int, max_length: int) -> dict:
    """The ids of a text repeated, cut to max_length."""
    found = model.tokenizer([TEXTS[text] * times], truncation=True, max_length=max_length)["input_ids"][0]
    return {"text": text, "times": times, "max_length": max_length, "ids": found}


def one_text(model: BGEM3FlagModel) -> dict:
    """What `encode` gives for a str: shapes without the axis of texts."""
    found = encode(model, TEXTS[2])
    return {
        "text": 2,
        "keys": list(found["lexical_weights"]),
        "dense_shape": found["dense_vecs"].shape,
        "colbert_shape": found["colbert_vecs"].shape,
    }


def words(model: BGEM3FlagModel) -> list[list[list]]:
    """`convert_id_to_token` of each text's lexical weights: (word, weight) in order."""
    found = encode(model, TEXTS)["lexical_weights"]
    return [[[w, float(v)] for w, v in model.convert_id_to_token(weights).items()] for weights in found]


def pair_scores(model: BGEM3FlagModel) -> list[dict]:
    """`compute_score` of all pairs, with fusion weights, batch sizes and lengths varied."""
    fusions = ([0.4, 0.2, 0.4], [1, 0.3, 1])
    runs = [{"batch_size": size, "weights_for_different_modes": fusion} for fusion in fusions for size in (1, 4)]
    runs += [{"batch_size": 1}, {"batch_size": 1, "max_query_length": 6, "max_passage_length": 10}]
    pairs = [(TEXTS[query], TEXTS[passage]) for query, passage in PAIRS]
    return [{"arguments": run, "scores": model.compute_score(pairs, **run)} for run in runs]


def score_matrices(model: BGEM3FlagModel) -> dict[str, np.ndarray]:
    """Every text with every text: `compute_lexical_matching_score` and `colbert_score`, (S, S) each."""
    found = encode(model, TEXTS)
    weights, rows = found["lexical_weights"], found["colbert_vecs"]
    return {
        "lexical_scores": model.compute_lexical_matching_score(weights, weights).astype(np.float32),
        "colbert_scores": np.array([[model.colbert_score(q, p).item() for p in rows] for q in rows], np.float32),
    }


def weights_sha256(model: BGEM3FlagModel, checkpoint: Path) -> str:
    """Digest of all weights as float32, whatever bytes the files have: name, shape and values, sorted by name."""
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    for head in ("sparse", "colbert"):
        for name, value in getattr(model.model, f"{head}_linear").state_dict().items():
            tensors[f"{head}.{name}"] = value.numpy()
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], np.float32)
        digest.update(f"{name}{tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def as_text(facts: dict) -> str:
    """JSON with one line per innermost entry, so that a change can be read."""
    lines = [f"{json.dumps(key)}: {_value(value)}" for key, value in facts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
    if isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()]
        return "{\n  " + ",\n  ".join(entries) + "\n}"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
