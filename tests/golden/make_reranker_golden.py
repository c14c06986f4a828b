"""Record what FlagReranker of FlagEmbedding 1.4.2 itself gives for mini-reranker: the golden scores.

Nothing of this project runs here. A person runs it, once per change of the checkpoint's weights, in an environment
that has the reference:

    m3-export mini-reranker CHECKPOINTS/mini-reranker --checkpoint-only
    python3.11 -m venv REFERENCE
    REFERENCE/bin/pip install torch==2.13.0
    REFERENCE/bin/pip install FlagEmbedding==1.4.2
    REFERENCE/bin/python tests/golden/make_reranker_golden.py CHECKPOINTS/mini-reranker

It writes mini_reranker.json beside this file: texts, pairs as indices of them, and for each way of calling
`compute_score` one score a pair, before the sigmoid.
"""

import argparse
import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
from FlagEmbedding import FlagReranker
from safetensors import safe_open

REFERENCE = "1.4.2"
FILES = ("model.safetensors", "tokenizer.json")
PACKAGES = ("FlagEmbedding", "torch", "transformers", "tokenizers", "numpy")

DIARY = (
    "A lighthouse keeper writes down the weather four times a day: wind, cloud, pressure and the height of the waves. "
    "For a hundred years nobody read these notebooks. Then a student of climate photographed 41,306 pages, and a "
    "program learnt to read the handwriting of twelve keepers, three of whom spelled 'barometer' in their own way. "
    "The figures show that storms arrive about nine days earlier than in 1890 – though the summers of 1911 and 1976 "
    "stand apart. What began as duty, says the student, became the longest unbroken diary of one small rock."
)
QUERIES = (
    "how many pages of weather notes were photographed?",
    "灯塔看守人每天记录几次天气？",
    "Wann kommen die Stürme im Vergleich zu 1890?",
    "¿Cuántos fareros hubo?",
    "من صوّر صفحات الدفاتر؟",
    "夜の港で光っているのは何ですか",
    "सड़क कब खुली?",
    "ตลาดน้ำเปิดกี่โมง",
    "когда открывается рынок",
    "등대지기는 무엇을 기록했습니까?",
    "BM25",
    "the token <unk> and <mask> before </s>",
    "🚀 launch day?  two  blanks",
    "which summers stand apart, and why would a keeper of a lighthouse, who writes wind, cloud, pressure and the "
    "height of the waves into a notebook four times a day for all his life, ever care what a program reads there?",
)
PASSAGES = (
    DIARY,
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms in each document",
    "黄昏时分，渔船一只接一只地回到港口；夜の港は静かで、灯台だけが光っている。看守人一天四次记下天气。",
    "क्या बारिश के बाद पहाड़ की सड़क खुल गई है? हाँ, मंगलवार की सुबह से।",
    "ตลาดน้ำเปิดตั้งแต่เช้าจนถึงบ่ายสามโมง",
    "Рынок на воде открыт с утра до трёх часов дня.",
    "هل وصل القطار المتأخر من المدينة القديمة؟ صوّر الطالب كل الصفحات.",
    "등대지기는 하루에 네 번 바람과 구름, 기압, 파도의 높이를 적었다.",
    "launch day 🚀🚀 👩‍🔬 went well 👍🏽! the token <unk> and <mask> before </s> and after<mask>it",
    "a",
    " ".join([DIARY] * 6),  # longer than the model takes
)
# Every query with the diary, and with three passages more that go around.
PAIRS = tuple(
    (q, p) for q in range(len(QUERIES)) for p in dict.fromkeys((0, *((q + s) % len(PASSAGES) for s in (1, 4, 8))))
)
CALLS = (
    {},
    {"max_length": 64},
    {"max_length": 48, "query_max_length": 6},
    {"query_max_length": 12},
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record golden scores of FlagEmbedding 1.4.2's FlagReranker.")
    parser.add_argument("checkpoint", type=Path, help="folder that m3-export mini-reranker --checkpoint-only wrote")
    args = parser.parse_args()
    if metadata.version("FlagEmbedding") != REFERENCE:
        parser.error(f"FlagEmbedding {metadata.version('FlagEmbedding')} is installed; the reference is {REFERENCE}")
    target = Path(__file__).parent / "mini_reranker.json"
    target.write_text(json.dumps(record(args.checkpoint), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def record(checkpoint: Path) -> dict:
    """Everything that tests compare with."""
    model = FlagReranker(str(checkpoint), use_fp16=False, devices="cpu", batch_size=4)  # less padding, sooner done
    pairs = [(QUERIES[query], PASSAGES[passage]) for query, passage in PAIRS]
    made_with = {package: metadata.version(package) for package in PACKAGES}
    return {
        "model": "mini-reranker",
        "made_with": made_with | {"python": platform.python_version()},
        "checkpoint": {
            "weights_sha256": weights_sha256(checkpoint),
            "files": {file: hashlib.sha256((checkpoint / file).read_bytes()).hexdigest() for file in FILES},
        },
        "queries": QUERIES,
        "passages": PASSAGES,
        "pairs": PAIRS,
        "calls": [{"arguments": call, "scores": model.compute_score(pairs, **call)} for call in CALLS],
        "normalized": model.compute_score(pairs, normalize=True),
        "one_pair": model.compute_score(pairs[0]),
    }


def weights_sha256(checkpoint: Path) -> str:
    """Digest of all weights as float32, whatever bytes the file has: name, shape and values, sorted by name.

    The encoder's names are without the prefix that a task's head brings.
    """
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        tensors = {name.removeprefix("roberta."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], np.float32)
        digest.update(f"{name}{tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
