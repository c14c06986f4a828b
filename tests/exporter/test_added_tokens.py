"""Fine-tunes with tokens of their own: exported with the ids that transformers gives, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from export_command import FEW, PROBE, export
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from m3_export.calibration.texts import probe_texts
from m3_export.checkpoint.added_tokens import MOST_PROBED, probe_texts_with, texts_with
from m3_export.checkpoint.tokenizer import HARD_TEXTS, CheckpointTokenizer, prove_same_ids
from m3_export.errors import CheckpointError
from m3_runtime import M3Encoder

ROWS = 560  # of tiny-random's word embedding
WORDS = "embeddings.word_embeddings.weight"
TOKENS = (
    AddedToken("LiFePO4", normalized=False),
    AddedToken("糖尿病"),
    AddedToken("<ENT>", lstrip=True, special=True, normalized=False),
    AddedToken("</ENT>", rstrip=True, special=True, normalized=False),
    AddedToken("qed", single_word=True),
    AddedToken("New York"),
)
NAMES = tuple(token.content for token in TOKENS)


@pytest.fixture
def folder(tiny_random_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "mine"))


def add_tokens(folder: Path, *tokens: AddedToken) -> None:
    """As a fine-tune does it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.add_tokens(list(tokens)) == len(tokens)
    tokenizer.save_pretrained(folder)


def resize(folder: Path, rows: int) -> None:
    """What `resize_token_embeddings` and `save_pretrained` leave."""
    state = load_file(folder / "model.safetensors")
    more = torch.randn(rows - ROWS, state[WORDS].shape[1], generator=torch.Generator().manual_seed(5))
    save_file({**state, WORDS: torch.cat([state[WORDS], more])}, folder / "model.safetensors")
    change(folder / "config.json", lambda config: config.update(vocab_size=rows))


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def in_pipeline(folder: Path, *tokens: AddedToken) -> None:
    """Into tokenizer.json and no other file."""
    pipeline = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pipeline.add_tokens(list(tokens))
    pipeline.save(str(folder / "tokenizer.json"))


def refusal(folder: Path, rows: int) -> str:
    with pytest.raises(CheckpointError) as caught:
        CheckpointTokenizer.open(folder, rows)
    return str(caught.value)


def test_a_bundle_with_added_tokens_is_proven_on_texts_that_hold_them(folder: Path, tmp_path: Path):
    add_tokens(folder, *TOKENS)
    resize(folder, 640)  # padded to a multiple of 64
    done = export(folder, "--variants", "onnx-fp32", *FEW, "--json", "--quiet", tmp_path / "out")
    assert done.code == 0, done.stderr
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    with M3Encoder.open(done.out, verify="full", threads=1) as encoder:
        manifest = encoder.bundle.manifest
        assert manifest.geometry.vocab_size == 640
        lines = len(PROBE.read_text(encoding="utf-8").splitlines())
        assert manifest.parity["onnx-fp32"].texts == lines + len(TOKENS)
        compared = len(HARD_TEXTS) + len(texts_with(NAMES)) + lines + len(TOKENS)
        assert manifest.tokenizer.proof.endswith(f"on {compared} texts")
        texts = [f"x {name}y, z{name} . {name} {name}" for name in NAMES] + ["a </ENT>  b  <ENT> qeda qed"]
        found = encoder.tokenizer.encode_batch(texts, 512).ids
        assert [ids.tolist() for ids in found] == theirs(texts)["input_ids"]
        weights = encoder.encode([f"the {name} of" for name in NAMES], return_sparse=True)["lexical_weights"]
        assert any(str(ROWS + number) in row for number, row in enumerate(weights))
        again = transformers.AutoTokenizer.from_pretrained(str(done.out), local_files_only=True)
        assert again(texts)["input_ids"] == theirs(texts)["input_ids"]


@pytest.mark.parametrize("rows", [ROWS + len(TOKENS), 1024])
def test_spare_rows_change_nothing(folder: Path, tmp_path: Path, rows: int):
    add_tokens(folder, *TOKENS)
    opened = CheckpointTokenizer.open(folder, rows)
    assert opened.added == NAMES
    assert prove_same_ids(opened, tmp_path, []).vocab_size == ROWS + len(TOKENS)


def test_tokens_without_a_row_are_named(folder: Path):
    add_tokens(folder, *TOKENS)
    for rows in (ROWS, ROWS + 2):
        message = refusal(folder, rows)
        assert f"the word embedding only {rows} rows" in message and repr(NAMES[rows - ROWS]) in message
        assert "resize_token_embeddings" in message


def test_the_rules_of_a_token_are_part_of_the_vector_space(folder: Path, tiny_random_checkpoint: Path, tmp_path: Path):
    plain = CheckpointTokenizer.open(tiny_random_checkpoint, ROWS)
    assert plain.added == ()
    digests = {plain.ids_sha256}
    for number, rules in enumerate(({}, {"single_word": True})):
        one = Path(shutil.copytree(folder, tmp_path / str(number)))
        add_tokens(one, AddedToken("qed", **rules))
        digests.add(CheckpointTokenizer.open(one, 576).ids_sha256)
    assert len(digests) == 3


def test_a_long_text_is_not_cut_inside_a_token(folder: Path, tmp_path: Path):
    add_tokens(folder, AddedToken(token := " ".join(["model of text"] * 6)))
    opened = CheckpointTokenizer.open(folder, 576)
    text = f"{token} " * 200
    runtime = prove_same_ids(opened, tmp_path, [])
    for length in (8, 55):  # 4096 characters, of which a first prefix is made, are 48 such tokens and a part of one
        ids = runtime.encode_batch([text], length).ids[0].tolist()
        assert ids == opened.original(text, truncation=True, max_length=length)["input_ids"]


# Files that contradict each other: releases of transformers read different ones


def test_a_token_of_tokenizer_json_alone_is_not_lost(folder: Path):
    in_pipeline(folder, AddedToken("brandneu"))
    message = refusal(folder, 640)
    assert message.startswith("tokenizer.json gives the token 'brandneu' the id 560, but transformers ")
    assert "finds no such token" in message and "save_pretrained" in message


def test_a_token_of_added_tokens_json_alone_is_not_lost(folder: Path):
    change(folder / "added_tokens.json", lambda data: data.update(brandneu=560))
    assert refusal(folder, 640).startswith("added_tokens.json gives the token 'brandneu' the id 560")


def test_files_of_before_added_tokens_decoder_are_read(folder: Path):
    """transformers 4 up to 4.33 wrote the tokens to added_tokens.json and to tokenizer.json."""
    in_pipeline(folder, AddedToken("brandneu"))
    change(folder / "tokenizer_config.json", lambda data: data.pop("added_tokens_decoder"))
    change(folder / "added_tokens.json", lambda data: data.update({"brandneu": 560, "<mask>": 559}))
    assert CheckpointTokenizer.open(folder, 640).added == ("brandneu",)


def test_a_token_of_the_configuration_alone_is_added(folder: Path, tmp_path: Path):
    token = {"content": "brandneu", "lstrip": False, "rstrip": False, "single_word": True, "normalized": False}
    change(folder / "tokenizer_config.json", lambda data: data["added_tokens_decoder"].update({"560": token}))
    opened = CheckpointTokenizer.open(folder, 640)
    assert opened.added == ("brandneu",)
    assert prove_same_ids(opened, tmp_path, []).encode_batch(["brandneu"], 9).ids[0].tolist() == [0, 560, 2]


def test_ids_with_a_gap_are_refused(folder: Path):
    tokens = {str(index): {"content": f"neu{index}"} for index in (560, 563)}
    change(folder / "tokenizer_config.json", lambda data: data["added_tokens_decoder"].update(tokens))
    assert "gives the token 'neu563' the id 563, but transformers" in (message := refusal(folder, 640))
    assert "finds the id 561" in message


@pytest.mark.parametrize("content", ["[]", "{", '{"neu": null}'])
def test_malformed_files_are_named(folder: Path, content: str):
    (folder / "added_tokens.json").write_text(content)
    assert "added tokens cannot be read" in refusal(folder, 640)


# The probe texts


def test_probe_texts_hold_added_tokens_and_are_few():
    probe = probe_texts()
    assert probe_texts_with([], probe) == ()
    few = probe_texts_with(NAMES, probe[:2])
    assert [name in text.text for name, text in zip(NAMES, few, strict=True)] == [True] * len(NAMES)
    for count in (MOST_PROBED, MOST_PROBED + 1, 5000):
        many = probe_texts_with([f"neu{n}" for n in range(count)], probe)
        assert len({text.id for text in many}) == len(many) <= MOST_PROBED
