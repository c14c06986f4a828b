"""The checkpoint's tokenizer, saved as the pipeline it is at export, and the proof that the runtime agrees."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer

from m3_export.calibration.pairs import TextPair, pair_ids
from m3_export.checkpoint.added_tokens import TOKENIZER_NAME, stated_ids, texts_with
from m3_export.errors import CheckpointError, TokenizerMismatchError
from m3_runtime.bundle.manifest import TokenizerInfo
from m3_runtime.errors import BundleError
from m3_runtime.tokenizer import M3Tokenizer

SPECIAL_TOKENS_NAME = "special_tokens_map.json"
# transformers 5 makes an empty vocabulary where neither file is there, and says nothing
VOCABULARY_FILES = (TOKENIZER_NAME, "sentencepiece.bpe.model")
SPECIAL_TOKENS = ("bos_token", "cls_token", "eos_token", "sep_token", "pad_token", "unk_token", "mask_token")
UNUSED = ("cls_token", "eos_token", "pad_token", "unk_token")  # what FlagEmbedding gives no lexical weight

# Where tokenizers differ: scripts without blanks, marks, blanks at the edges, literal special tokens.
# Their ids are part of the space_id: changing a text here gives every bundle another one.
HARD_TEXTS = (
    "", " ", "   ", "\t\n", "a", " a ", "a  b", "trailing blank ", "trailing tab\t", "line\nbreak\r\n", "\u00a0nbsp",
    "\u200bzero width\u200b", "\ufeffmark", "中文分词没有空格", "日本語のテキスト、全角　空白", "ｶﾀｶﾅ ＡＢＣ １２３",
    "한국어 문장", "ภาษาไทยไม่มีช่องว่าง", "النَّصّ العَرَبِيّ", "עברית עם ניקוד: שָׁלוֹם", "हिन्दी क्षत्रिय", "বাংলা যুক্তবর্ণ",
    "👩‍👩‍👧‍👦 family 🇩🇪 flag 👍🏽", "e\u0301 decomposed é composed", "ﬁ ligature ① ㎞ ㍿", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀𠀁 𡈽",
    "<s> </s> <pad> <unk> <mask>", "text</s>", "<mask> in <mask>", "a <unk> b ", "x</s> y", "https://example.com/?q=1&b=2#c",
    "def f(x):\n\treturn x ** 2  # comment\n", "1,234.56 € −12 °C ½ ×10⁻³", "İstanbul ǅ ß ŉ",
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointTokenizer:
    """The tokenizer that transformers makes of the checkpoint, and what the manifest says of it.

    `saved` is the pipeline as JSON; `ids_sha256` digests what it does, however it is written down. `added` are the
    tokens that XLM-R does not have, in the order of their ids.
    """

    original: Any
    info: TokenizerInfo
    saved: str
    ids_sha256: str
    added: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path, vocab_size: int) -> "CheckpointTokenizer":
        """Load it as FlagEmbedding would, code of the checkpoint never included.

        Raises:
            CheckpointError: the files are missing or damaged, or its ids do not fit the model.
        """
        if not any((folder / name).is_file() for name in VOCABULARY_FILES):
            raise CheckpointError(
                f"{folder.name} holds neither {' nor '.join(VOCABULARY_FILES)}; copy the tokenizer's files of the "
                "model that was fine-tuned there"
            )
        try:
            original = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
            backend = Tokenizer.from_str(original.backend_tokenizer.to_str())
        except Exception as error:  # the tokenizers package raises bare Exception
            raise CheckpointError(f"{folder.name}: no tokenizer could be read ({str(error)[:300]})") from error
        backend.no_truncation()
        backend.no_padding()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        _check_ids(vocabulary, backend.get_vocab(with_added_tokens=False), vocab_size)
        _check_stated(folder, vocabulary)
        if lacking := [name for name in UNUSED if getattr(original, name) is None]:
            raise CheckpointError(f"{folder.name}: the tokenizer has no {lacking[0]}; XLM-R's has all of {UNUSED}")
        roles = {getattr(original, name) for name in SPECIAL_TOKENS}
        tokens = sorted(backend.get_added_tokens_decoder().items(), key=itemgetter(0))
        added = tuple(token.content for _, token in tokens if token.content not in roles)
        digest = _ids_sha256(vocabulary, original, (*HARD_TEXTS, *texts_with(added)))
        return cls(original, _describe(original), backend.to_str(pretty=False), digest, added)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        (folder / TOKENIZER_NAME).write_text(self.saved, encoding="utf-8")

    def config(self, max_tokens: int) -> dict[str, Any]:
        """What transformers reads beside tokenizer.json, in tokenizer_config.json.

        The class is the one that takes the pipeline as saved. XLM-R's own rebuilds parts of it, by the rules of the
        release that reads it.
        """
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_tokens,
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            **self._special,
        }

    def special_tokens(self) -> dict[str, dict[str, Any]]:
        """Every special token with the rules by which the pipeline finds it, as special_tokens_map.json holds them."""
        added = {token["content"]: token for token in json.loads(self.saved)["added_tokens"]}
        rules = ("content", "lstrip", "normalized", "rstrip", "single_word")
        return {
            name: {rule: added[token][rule] for rule in rules}
            for name, token in self._special.items()
            if token in added
        }

    @property
    def _special(self) -> dict[str, str]:
        tokens = {name: getattr(self.original, name) for name in SPECIAL_TOKENS}
        return {name: token for name, token in tokens.items() if token is not None}


def prove_same_ids(tokenizer: CheckpointTokenizer, folder: Path, texts: Sequence[str]) -> M3Tokenizer:
    """Save the tokenizer and show that the runtime reads the file to the same ids.

    Compared are `texts`, `HARD_TEXTS`, and texts with every added token.

    Returns:
        The runtime's tokenizer; `info.proof` says how much was compared.

    Raises:
        TokenizerMismatchError: names the first text that differs.
    """
    tokenizer.save(folder)
    compared = (*HARD_TEXTS, *texts_with(tokenizer.added), *texts)
    info = replace(tokenizer.info, proof=f"same ids as {tokenizer.info.written_by} on {len(compared)} texts")
    try:
        runtime = M3Tokenizer.open(folder / TOKENIZER_NAME, info)
    except BundleError as error:
        raise TokenizerMismatchError(
            f"the runtime cannot use the checkpoint's tokenizer: {error.__cause__ or _wrapping(tokenizer)}; "
            "it must be XLM-R's, one <s> and one </s> around a text"
        ) from error
    longest = max(len(text) for text in compared) * 4 + 16
    for text, ids in zip(compared, runtime.encode_batch(compared, longest).ids, strict=True):
        expected = _original_ids(tokenizer.original, text)
        if expected != ids.tolist():
            raise TokenizerMismatchError(
                f"the saved tokenizer gives other ids for {text[:60]!r}: the checkpoint's own {expected[:20]}, "
                f"the runtime {ids.tolist()[:20]}; the installed tokenizers package may not know this pipeline"
            )
    return runtime


def prove_same_pairs(tokenizer: CheckpointTokenizer, runtime: M3Tokenizer, pairs: Sequence[TextPair]) -> None:
    """Show that the ids of a pair are those that the checkpoint's tokenizer gives both texts at once.

    Raises:
        TokenizerMismatchError: names the first pair that differs.
    """
    longest = max(len(pair.text) for pair in pairs) * 16 + 64
    queries, passages = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    # as lists: a single empty passage counts as none
    originals = tokenizer.original(queries, passages, truncation=False, padding=False, verbose=False)["input_ids"]
    for pair, expected, ids in zip(pairs, originals, pair_ids(runtime, pairs, longest), strict=True):
        if list(expected) != ids.tolist():
            raise TokenizerMismatchError(
                f"the checkpoint's tokenizer joins {pair.query[:40]!r} and {pair.passage[:40]!r} to {expected[:20]}, "
                f"expected {ids.tolist()[:20]}; it must be XLM-R's, <s> query </s></s> passage </s>"
            )


def _check_ids(vocabulary: Mapping[str, int], pieces: Mapping[str, int], vocab_size: int) -> None:
    largest = max(vocabulary.values())
    if beyond := sorted((index, token) for token, index in vocabulary.items() if index >= vocab_size):
        are_added = all(token not in pieces for _, token in beyond)
        named = ", ".join(repr(token) for _, token in beyond[:3]) + (", …" if len(beyond) > 3 else "")
        raise CheckpointError(
            f"the tokenizer has ids up to {largest}, the word embedding only {vocab_size} rows, none for {named}; "
            + (
                "call model.resize_token_embeddings(len(tokenizer)) before training, or take the tokenizer without "
                "these tokens that the model was trained with"
                if are_added
                else "tokenizer and weights belong to different models"
            )
        )
    if largest < vocab_size // 2:  # some rows may be spare, but not most of them
        raise CheckpointError(
            f"the tokenizer has ids up to {largest} only, the word embedding {vocab_size} rows; "
            "its vocabulary is damaged, or belongs to another model than the weights"
        )


def _check_stated(folder: Path, vocabulary: Mapping[str, int]) -> None:
    """A token that one release of transformers reads and another does not would be lost without a word."""
    for file, token, index in stated_ids(folder):
        if (found := vocabulary.get(token)) != index:
            instead = "no such token" if found is None else f"the id {found}"
            raise CheckpointError(
                f"{file} gives the token {token!r} the id {index}, but transformers {transformers.__version__} finds "
                f"{instead} in the tokenizer's files, which contradict each other; save them again, with "
                "tokenizer.save_pretrained, as the model was trained"
            )


def _wrapping(tokenizer: CheckpointTokenizer) -> str:
    ids, info = Tokenizer.from_str(tokenizer.saved).encode("").ids, tokenizer.info
    return f"an empty text becomes {ids}, expected {[info.cls_id, info.eos_id]}"


def _ids_sha256(vocabulary: Mapping[str, int], original: Any, texts: Sequence[str]) -> str:
    """Every piece with its id, and the ids of texts which show normalisers, scores and blank rules."""
    pieces = [f"{index} {piece}" for piece, index in sorted(vocabulary.items(), key=itemgetter(1, 0))]
    ids = [str(_original_ids(original, text)) for text in texts]
    return hashlib.sha256("\n".join([*pieces, *ids]).encode("utf-8", "surrogatepass")).hexdigest()


def _original_ids(original: Any, text: str) -> list[int]:
    return list(original(text, truncation=False, verbose=False)["input_ids"])


def _describe(original: Any) -> TokenizerInfo:
    special = original.special_tokens_map
    unused = {original.convert_tokens_to_ids(special[name]) for name in UNUSED if name in special}
    keeps_blank = _original_ids(original, "a ") != _original_ids(original, "a")
    return TokenizerInfo(
        path=TOKENIZER_NAME,
        cls_id=int(original.cls_token_id),
        pad_id=int(original.pad_token_id),
        eos_id=int(original.eos_token_id),
        unk_id=int(original.unk_token_id),
        unused_ids=tuple(sorted(int(i) for i in unused)),
        blank_rule="kept" if keeps_blank else "dropped",
        written_by=f"transformers {transformers.__version__}",
        proof="not compared",
    )
