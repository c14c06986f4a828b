"""The SentencePiece file, read by SentencePiece itself."""

import json

import pytest
import sentencepiece
from tokenizers import Tokenizer

from m3_bench.errors import PeerError
from m3_bench.peers.sentencepiece_file import spm_bytes

LINES = ["the vector model", "What is dense retrieval?", "向量 检索 模型", "поиск и 検索", "ﬁne ①② Ｆｕｌｌ"]


def ids_of(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """XLM-R's ids: SentencePiece's are one less, and its unknown piece has an id of its own."""
    return [0, *(3 if id_ == processor.unk_id() else id_ + 1 for id_ in processor.encode(text)), 2]


@pytest.mark.parametrize("checkpoint", ["tiny_random_checkpoint", "mini_m3_checkpoint"])
def test_sentencepiece_reads_it_and_gives_the_same_ids(checkpoint, request):
    path = request.getfixturevalue(checkpoint) / "tokenizer.json"
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm_bytes(path))
    tokenizer = Tokenizer.from_file(str(path))
    for line in LINES:
        assert ids_of(processor, line) == tokenizer.encode(line).ids


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": {"[CLS]": 0}}}))
    with pytest.raises(PeerError, match="not XLM-R's"):
        spm_bytes(path)
