"""Dense vectors of fewer dimensions than the model's: for which checkpoints, and at what loss.

The first dimensions of a vector are a vector of their own where a checkpoint was trained for it (Matryoshka
representation learning, https://arxiv.org/abs/2205.13147). Its config.json says so, in the keys that vLLM reads too.
Elsewhere a cut costs accuracy; where it is allowed nevertheless, GET /info says how much, measured on this model.
"""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.reader import Bundle
from m3_runtime.encode.encoding import Encoding, leading
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import BundleFormatError, FieldError

_CONFIG_NAME = "config.json"

_PAIRS = (
    ("How do bees tell each other where flowers are?", "A bee that has found nectar dances, and the others follow."),
    ("When was the printing press invented?", "Gutenberg printed with movable type in Mainz around 1450."),
    ("What makes bread rise?", "Yeast turns sugar into carbon dioxide, which lifts the dough."),
    ("Why is the sky blue?", "Air scatters short wavelengths of sunlight more than long ones."),
    ("How do I return a parcel?", "Goods can be sent back within thirty days; a label is in the box."),
    ("What does a transformer in a power station do?", "Coils around an iron core raise the voltage for the line."),
    ("Wie entsteht ein Gewitter?", "Warme, feuchte Luft steigt auf, kühlt ab und lädt sich dabei elektrisch auf."),
    ("Wer darf in Deutschland wählen?", "Wahlberechtigt sind Staatsangehörige, die achtzehn Jahre alt sind."),
    ("Comment fait-on du fromage ?", "Le lait caille avec la présure, puis on égoutte et on affine la pâte."),
    ("¿Dónde nace el río Ebro?", "El Ebro nace en Fontibre, en Cantabria, y desemboca en el Mediterráneo."),
    ("Как работает холодильник?", "Хладагент испаряется внутри камеры и забирает тепло, а компрессор сжимает его."),
    ("光合作用需要什么？", "植物利用阳光、水和二氧化碳制造糖分，并放出氧气。"),
    ("地震はなぜ起きますか。", "プレートが動いてひずみがたまり、岩盤が割れると揺れが伝わります。"),
    ("김치는 어떻게 만드나요?", "절인 배추에 고춧가루와 젓갈을 넣고 며칠 동안 발효시킵니다."),
    ("How large is a UUID?", "A universally unique identifier has 128 bits, written as 32 hexadecimal digits."),
    ("Which vitamin prevents scurvy?", "Sailors who ate citrus fruit, rich in vitamin C, kept their gums."),
)
"""Questions, each with the one passage that answers it."""


@dataclass(frozen=True)
class Dimensions:
    """Sizes in which dense vectors are given: the model's own, those that it was trained for, or any smaller one."""

    own: int
    trained: frozenset[int]
    is_any_taken: bool

    @classmethod
    def of(cls, bundle: Bundle, *, is_any_taken: bool) -> "Dimensions":
        """Those of a bundle.

        Raises:
            BundleFormatError: its config.json is malformed.
        """
        own = bundle.manifest.geometry.hidden_size
        return cls(own, frozenset(size for size in _trained(bundle) if 0 < size < own), is_any_taken)

    def checked(self, wanted: int | None) -> int:
        """How many dimensions a request gets; None is all.

        Raises:
            FieldError: more than there are, or fewer than the checkpoint was trained for.
        """
        if wanted is None or wanted == self.own or wanted in self.trained:
            return wanted or self.own
        if 0 < wanted < self.own and self.is_any_taken:
            return wanted
        if 0 < wanted < self.own and not self.trained:
            raise FieldError(
                f"dimensions must be {self.own} or left out, got {wanted}: the model was not trained for shorter "
                "vectors, and cutting them would silently cost accuracy; a server that is started with "
                "--allow-dimensions cuts them, and GET /info tells the loss",
                "dimensions",
            )
        sizes = "any smaller size" if self.is_any_taken else _ranges(self.trained)
        also = f", {sizes}," if sizes else ""
        raise FieldError(f"dimensions must be {self.own}{also} or left out, got {wanted}", "dimensions")


def measured_losses(encoder: M3Encoder) -> list[dict[str, float]]:
    """What is lost at a half, a quarter and an eighth of the dimensions, and at sizes that tools ask for by default.

    For each size, over the built-in questions and passages: the share of questions whose own passage is the nearest of
    all, the same with whole vectors, and the mean absolute change of the cosines of all questions with all passages.

    Raises:
        EngineError: the engine cannot run the graph.
    """
    questions, passages = zip(*_PAIRS, strict=True)
    found = encoder.encode([*questions, *passages])
    own = encoder.bundle.manifest.geometry.hidden_size
    whole = _cosines(found, own)
    sizes = sorted({own // 2, own // 4, own // 8, *(size for size in (256, 384, 512, 768) if size < own)} - {0})
    return [
        {
            "dimensions": size,
            "own_passage_first": _own_first(cut),
            "own_passage_first_whole": _own_first(whole),
            "cosine_change_mean": round(float(np.abs(cut - whole).mean()), 4),
        }
        for size in reversed(sizes)
        for cut in [_cosines(found, size)]
    ]


def _cosines(found: Encoding, size: int) -> NDArray[np.float32]:
    """(N, N): of all questions with all passages."""
    assert found.dense_vecs is not None
    questions, passages = np.split(leading(found.dense_vecs, size, normalize=True), 2)
    return questions @ passages.T


def _own_first(cosines: NDArray[np.float32]) -> float:
    return float((cosines.argmax(axis=1) == np.arange(len(cosines))).mean())


def _trained(bundle: Bundle) -> list[int]:
    """Sizes that config.json names: `matryoshka_dimensions`, or all where `is_matryoshka` stands alone."""
    if _CONFIG_NAME not in {entry.path for entry in bundle.manifest.files}:
        return []
    try:
        config = json.loads(bundle.file(_CONFIG_NAME).read_text(encoding="utf-8"))
        sizes = config.get("matryoshka_dimensions")
        if sizes is None:
            return list(range(1, bundle.manifest.geometry.hidden_size)) if config.get("is_matryoshka") is True else []
        if not isinstance(sizes, list) or not all(type(size) is int for size in sizes):
            raise TypeError(f"got {sizes!r}")
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        message = f"{_CONFIG_NAME}: matryoshka_dimensions must be a list of integers ({error}); export the bundle again"
        raise BundleFormatError(message) from error
    return sizes


def _ranges(sizes: frozenset[int]) -> str:
    """Up to a dozen sizes one by one, else the first and the last."""
    found = sorted(sizes)
    return ", ".join(map(str, found)) if len(found) <= 12 else f"{found[0]} to {found[-1]}"
