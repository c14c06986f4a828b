"""Make a labelled set from this Python's own documentation: which description belongs to a function's name?

    python benchmarks/data/python_functions.py OUT        # then: m3-bench retrieval OUT my-bundle

356 descriptions and 80 questions ("What does shutil.copytree() do?") with Python 3.11; other versions have others. Far
from what a retrieval model is trained on: names made of abbreviations, many of them alike.
"""

import importlib
import inspect
import json
import random
import sys
from pathlib import Path

MODULES = """shutil os os.path json re math itertools functools collections random statistics string textwrap difflib
datetime calendar time subprocess threading pathlib glob fnmatch tempfile csv gzip hashlib socket ssl select signal
inspect ast dis heapq bisect array struct codecs unicodedata locale decimal fractions operator copy pprint shlex stat
zlib base64 binascii email.utils urllib.parse html"""
DOCUMENTS, QUESTIONS, MOST_CHARACTERS = 320, 80, 300


def descriptions() -> dict[str, str]:
    """First paragraphs of functions' documentation by full name, each once."""
    found: dict[str, str] = {}
    for module in MODULES.split():
        for name, value in sorted(vars(importlib.import_module(module)).items()):
            public = getattr(importlib.import_module(module), "__all__", None)
            if name.startswith("_") or (public is not None and name not in public):
                continue
            if not callable(value) or inspect.isclass(value) or not getattr(value, "__doc__", None):
                continue
            first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
            if len(first) >= 25 and not any(text.endswith(first) for text in found.values()):
                found[f"{module}.{name}"] = f"{module}.{name}: {first[:MOST_CHARACTERS]}"
    return found


def main(out: Path) -> None:
    """Write BEIR's layout."""
    texts, draws = descriptions(), random.Random(0)  # noqa: S311 - a sample, no secret
    asked = draws.sample(sorted(texts), QUESTIONS)
    kept = sorted({*draws.sample(sorted(texts), DOCUMENTS), *asked})
    (out / "qrels").mkdir(parents=True)
    rows = {
        "corpus.jsonl": [{"_id": name, "text": texts[name]} for name in kept],
        "queries.jsonl": [{"_id": f"q-{name}", "text": f"What does {name}() do?"} for name in asked],
    }
    for file, lines in rows.items():
        (out / file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    labels = "".join(f"q-{name}\t{name}\t1\n" for name in asked)
    (out / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + labels, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
