"""A SentencePiece model file made of a `tokenizer.json`: the form in which others read XLM-R's vocabulary."""

import base64
import json
from pathlib import Path

from m3_bench.errors import PeerError

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # XLM-R's first ids
_MASK = "<mask>"  # its last id, which is none of SentencePiece's


def spm_bytes(tokenizer_json: Path) -> bytes:
    """The model file of an XLM-R `tokenizer.json` (Unigram).

    Raises:
        PeerError: it is no XLM-R tokenizer, or sentencepiece is not installed.
    """
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
    except ImportError as error:
        raise PeerError(f"{error}; install them: pip install sentencepiece protobuf") from error

    data = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    vocabulary = data["model"].get("vocab", [])
    texts = tuple(text for text, _ in vocabulary) if data["model"].get("type") == "Unigram" else ()
    if texts[: len(_SPECIALS)] != _SPECIALS or texts[-1:] != (_MASK,):
        raise PeerError(f"{str(tokenizer_json)!r} is not XLM-R's: expected Unigram, {_SPECIALS} first, {_MASK!r} last")
    kinds = ModelProto.SentencePiece
    model = ModelProto()
    model.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for text in ("<s>", "</s>"):
        model.pieces.add(piece=text, score=0.0, type=kinds.CONTROL)
    for text, score in vocabulary[len(_SPECIALS) : -1]:
        model.pieces.add(piece=text, score=score, type=kinds.NORMAL)
    model.trainer_spec.model_type = TrainerSpec.UNIGRAM
    model.normalizer_spec.name = "nmt_nfkc"
    model.normalizer_spec.precompiled_charsmap = _charsmap(data.get("normalizer"))
    written: bytes = model.SerializeToString()
    return written


def _charsmap(normalizer: object) -> bytes:
    """The precompiled charsmap of a normalizer, or of the first step that has one; empty without."""
    if not isinstance(normalizer, dict):
        return b""
    steps = normalizer.get("normalizers", [normalizer])
    return next((base64.b64decode(s["precompiled_charsmap"]) for s in steps if "precompiled_charsmap" in s), b"")
