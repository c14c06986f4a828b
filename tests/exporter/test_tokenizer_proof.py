"""The tokenizer: saved as it is, refused where it cannot be right, and proven against transformers' own ids."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from m3_export.calibration.texts import probe_texts
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.tokenizer import HARD_TEXTS, CheckpointTokenizer, prove_same_ids
from m3_export.errors import CheckpointError, TokenizerMismatchError
from m3_runtime import M3Encoder
from m3_runtime.tokenizer import M3Tokenizer

ROWS = 560  # of tiny-random's word embedding


@pytest.fixture(scope="module")
def opened(tiny_random_checkpoint: Path) -> CheckpointTokenizer:
    return CheckpointTokenizer.open(tiny_random_checkpoint, ROWS)


@pytest.fixture
def folder(tiny_random_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint"))


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def take_the_pipeline_as_it_is(config: dict[str, Any]) -> None:
    """XLM-R's own class rebuilds its pipeline in transformers 5; the plain one does not."""
    config["tokenizer_class"] = "PreTrainedTokenizerFast"


def refusal(folder: Path, rows: int = ROWS) -> str:
    with pytest.raises(CheckpointError) as caught:
        CheckpointTokenizer.open(folder, rows)
    return str(caught.value)


# What is saved


def test_the_saved_pipeline_is_the_one_that_transformers_has(opened: CheckpointTokenizer, tmp_path: Path):
    opened.save(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    original = transformers.AutoTokenizer.from_pretrained(opened.original.name_or_path)
    expected = json.loads(original.backend_tokenizer.to_str())
    got = json.loads(saved.to_str())
    got_pieces, pieces = got["model"].pop("vocab"), expected["model"].pop("vocab")
    assert got == {**expected, "truncation": None, "padding": None}
    assert [piece for piece, _ in got_pieces] == [piece for piece, _ in pieces]
    # the package's JSON reader may miss the last bit of a number
    assert [score for _, score in got_pieces] == pytest.approx([score for _, score in pieces], rel=1e-12)


def test_truncation_and_padding_of_a_training_run_are_not_saved(folder: Path):
    pipeline = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pipeline.enable_truncation(8)
    pipeline.enable_padding(pad_id=1, pad_token="<pad>", length=16)
    pipeline.save(str(folder / "tokenizer.json"))
    opened = CheckpointTokenizer.open(folder, ROWS)
    saved = json.loads(opened.saved)
    assert saved["truncation"] is saved["padding"] is None
    runtime = prove_same_ids(opened, folder, ["a text of more than eight tokens, which no truncation may cut"])
    assert runtime.info.proof.startswith("same ids")


def test_the_manifests_facts_are_the_tokenizers_own(opened: CheckpointTokenizer):
    info, original = opened.info, opened.original
    assert (info.cls_id, info.pad_id, info.eos_id, info.unk_id) == (
        original.cls_token_id, original.pad_token_id, original.eos_token_id, original.unk_token_id
    )  # fmt: skip
    assert set(info.unused_ids) == {info.cls_id, info.eos_id, info.pad_id, info.unk_id}
    assert original.mask_token_id not in info.unused_ids  # FlagEmbedding gives <mask> a weight
    assert info.written_by == f"transformers {transformers.__version__}"
    kept = original("a ")["input_ids"] != original("a")["input_ids"]
    assert info.blank_rule == ("kept" if kept else "dropped")


@pytest.mark.parametrize(("schemes", "rule"), [(["WhitespaceSplit", "Metaspace"], "dropped"), (["Metaspace"], "kept")])
def test_the_blank_rule_is_measured_not_assumed(folder: Path, schemes: list[str], rule: str):
    def edit(data: dict[str, Any]) -> None:
        kinds = data["pre_tokenizer"]["pretokenizers"]
        data["pre_tokenizer"]["pretokenizers"] = [kind for kind in kinds if kind["type"] in schemes]

    change(folder / "tokenizer.json", edit)
    change(folder / "tokenizer_config.json", take_the_pipeline_as_it_is)
    opened = CheckpointTokenizer.open(folder, ROWS)
    assert opened.info.blank_rule == rule
    assert prove_same_ids(opened, folder, []).info.blank_rule == rule


# The proof


def test_the_proof_says_with_what_and_on_how_many_texts(opened: CheckpointTokenizer, tmp_path: Path):
    texts = [text.text for text in probe_texts()]
    info = prove_same_ids(opened, tmp_path, texts).info
    count = len(HARD_TEXTS) + len(texts)
    assert info == replace(opened.info, proof=f"same ids as transformers {transformers.__version__} on {count} texts")
    assert opened.info.proof == "not compared"


def test_the_hard_texts_are_hard():
    joined = " ".join(HARD_TEXTS)
    assert {"", " ", "   "} <= set(HARD_TEXTS)
    assert any(text != text.rstrip() for text in HARD_TEXTS) and any(text != text.lstrip() for text in HARD_TEXTS)
    for special in (
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<mask>",
        "\u200b",
        "\ufeff",
        "👩‍👩‍👧‍👦",
        "中文",
        "ภาษาไทย",
        "العَرَ",
    ):
        assert special in joined, special


def sabotage(opened: CheckpointTokenizer, edit: Callable[[dict[str, Any]], object]) -> CheckpointTokenizer:
    data = json.loads(opened.saved)
    edit(data)
    return replace(opened, saved=json.dumps(data))


def swap_two_pieces(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    (place,) = [i for i, (piece, _) in enumerate(vocab) if piece == "▁the"]
    vocab[place], vocab[place + 1] = vocab[place + 1], vocab[place]


@pytest.mark.parametrize(
    "edit",
    [
        swap_two_pieces,
        lambda data: data.update(normalizer={"type": "Lowercase"}),
        lambda data: data.update(normalizer={"type": "NFC"}),
        lambda data: data.update(pre_tokenizer=data["pre_tokenizer"]["pretokenizers"][1]),
        lambda data: data["added_tokens"].pop(),
        lambda data: data["model"]["vocab"].__setitem__(5, [data["model"]["vocab"][5][0], -30.0]),
    ],
    ids=["pieces", "case", "accents", "trailing blanks", "literal <mask>", "a score"],
)
def test_a_pipeline_that_gives_other_ids_is_found_out(opened: CheckpointTokenizer, tmp_path: Path, edit: Callable):
    with pytest.raises(TokenizerMismatchError) as caught:
        prove_same_ids(sabotage(opened, edit), tmp_path, [text.text for text in probe_texts()])
    message = str(caught.value)
    assert message.startswith("the saved tokenizer gives other ids for ")
    assert "the checkpoint's own [" in message and "the runtime [" in message


@pytest.mark.parametrize(
    "edit",
    [lambda data: data.update(post_processor=None), lambda data: data["model"].update(type="Unheard")],
    ids=["no special tokens", "unknown model"],
)
def test_a_pipeline_that_the_runtime_cannot_use_is_a_mismatch_too(
    opened: CheckpointTokenizer, tmp_path: Path, edit: Callable
):
    with pytest.raises(TokenizerMismatchError, match="the runtime cannot use the checkpoint's tokenizer: ") as caught:
        prove_same_ids(sabotage(opened, edit), tmp_path, [])
    assert "export the bundle again" not in str(caught.value), "there is no bundle yet"


def test_the_bundle_holds_the_proven_pipeline(tiny_bundle: Path, opened: CheckpointTokenizer):
    assert (tiny_bundle / "tokenizer.json").read_text(encoding="utf-8") == opened.saved
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as encoder:
        assert encoder.tokenizer_info.proof == f"same ids as {opened.info.written_by} on {len(HARD_TEXTS) + 97} texts"
        assert isinstance(encoder.tokenizer, M3Tokenizer)


# What is refused


@pytest.mark.parametrize("rows", [559, 100, 1])
def test_ids_beyond_the_embedding_are_refused(tiny_random_checkpoint: Path, rows: int):
    message = refusal(tiny_random_checkpoint, rows)
    assert f"ids up to 559, the word embedding only {rows} rows" in message
    assert "different models" in message


def test_spare_rows_are_allowed_but_not_mostly_spare_ones(tiny_random_checkpoint: Path):
    assert CheckpointTokenizer.open(tiny_random_checkpoint, 640).info.cls_id == 0
    message = refusal(tiny_random_checkpoint, 250_002)
    assert "ids up to 559 only, the word embedding 250002 rows" in message and "another model" in message


def test_added_tokens_count_as_ids(folder: Path):
    pipeline = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pipeline.add_tokens(["brandneu"])
    pipeline.save(str(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", take_the_pipeline_as_it_is)
    assert f"ids up to {ROWS}, the word embedding only {ROWS} rows" in refusal(folder)


def test_no_vocabulary_file_is_refused_though_transformers_would_make_an_empty_one(folder: Path):
    (folder / "tokenizer.json").unlink()
    message = refusal(folder)
    assert "neither tokenizer.json nor sentencepiece.bpe.model" in message and "copy" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_refused(folder: Path, content: bytes):
    (folder / "tokenizer.json").write_bytes(content)
    assert refusal(folder).startswith("checkpoint: no tokenizer could be read (")


def test_a_damaged_sentencepiece_model_is_refused(folder: Path):
    (folder / "tokenizer.json").unlink()
    (folder / "sentencepiece.bpe.model").write_bytes(b"no model")
    assert "tokenizer" in refusal(folder)


@pytest.mark.parametrize("token", ["cls_token", "pad_token", "unk_token"])
def test_a_tokenizer_without_the_special_tokens_is_refused(folder: Path, token: str):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change(folder / name, lambda data: data.pop(token))
    change(folder / "tokenizer_config.json", lambda data: data.update({token: None}))
    assert f"the tokenizer has no {token}" in refusal(folder)


def test_code_of_the_checkpoint_never_runs(folder: Path, tmp_path: Path):
    marker = tmp_path / "marker"
    (folder / "tokenization_own.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n"
        "from transformers import XLMRobertaTokenizer as Own\n"
    )
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}}
    change(folder / "tokenizer_config.json", lambda data: data.update(own))
    change(folder / "config.json", lambda data: data.update(auto_map={"AutoModel": "tokenization_own.Own"}))
    Checkpoint.open(folder)
    try:
        CheckpointTokenizer.open(folder, ROWS)
    except CheckpointError as error:
        assert "tokenizer" in str(error)
    assert not marker.exists()
