"""Make a labelled set of product names from two lists: which chip is in the card that is sold under this name?

    apt-get download pci.ids libdrm-common && for one in *.deb; do dpkg -x "$one" FOLDER; done
    python benchmarks/data/graphics_cards.py FOLDER/usr/share OUT        # then: m3-bench retrieval OUT my-bundle

A card as AMD sells it ("AMD Embedded Radeon E9171", libdrm, MIT) asks for the chips in the list of PCI devices ("Lexa
[Radeon 540X/550X/630 / RX 640 / E9171 MCM]", GPL-2+ or 3-clause BSD). 235 questions and 1101 chips with Debian 12.
"""

import json
import re
import sys
from pathlib import Path

VENDOR = "1002"
"""AMD's number in the list of PCI devices."""


def main(folder: Path, out: Path) -> None:
    """Write BEIR's layout; chips and cards belong together by device number."""
    devices = (folder / "misc" / "pci.ids").read_text(encoding="utf-8")
    vendor = next(one for one in re.split(r"^(?=\w{4} )", devices, flags=re.MULTILINE) if one.startswith(VENDOR))
    chips = dict(re.findall(r"^\t(\w{4})  (.*)$", vendor, re.MULTILINE))
    sold = (folder / "libdrm" / "amdgpu.ids").read_text(encoding="utf-8")
    cards: dict[str, set[str]] = {}
    for number, name in re.findall(r"^(\w{4}),\s*\w+,\s*(.*)$", sold, re.MULTILINE):
        if number.lower() in chips:
            cards.setdefault(name.strip(), set()).add(number.lower())
    (out / "qrels").mkdir(parents=True)
    rows = {
        "corpus.jsonl": [{"_id": number, "text": name} for number, name in sorted(chips.items())],
        "queries.jsonl": [{"_id": f"q{n}", "text": name} for n, name in enumerate(sorted(cards))],
    }
    for file, lines in rows.items():
        (out / file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    labels = "".join(f"q{n}\t{number}\t1\n" for n, name in enumerate(sorted(cards)) for number in sorted(cards[name]))
    (out / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + labels, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
